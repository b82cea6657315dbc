"""Programs that people put around the server: the openai client for JavaScript, nginx as docs/guides/serve.md sets it.

Each test is skipped where its program is not installed; `make test-browser` installs the client.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "guides" / "serve.md"
CLIENT = Path(os.environ.get("MMCLI_NODE_MODULES", ROOT / "build" / "browser" / "node_modules")) / "openai"
NODE = shutil.which("node")
NGINX = os.environ.get("MMCLI_NGINX") or shutil.which("nginx")
HELLO = [{"role": "user", "content": "Hello"}]

SHORT = "stream: true, max_tokens: 20"  # of the program of the guide

pytestmark = pytest.mark.slow


@pytest.mark.skipif(NODE is None or not CLIENT.is_dir(), reason="needs Node and the npm package openai")
def test_the_client_for_javascript(server: Any, writes: Callable[..., Any], tmp_path: Path) -> None:
    assert NODE is not None
    writes("rain ", seconds=0.01, end=False)
    address, script = f"http://127.0.0.1:{server.port}", str(Path(__file__).parent / "client.mjs")
    done = subprocess.run([NODE, script, address, str(CLIENT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    create = server.client.chat.completions.create
    reply = create(model="random", messages=HELLO, max_tokens=20, temperature=0, extra_body={"repetition_penalty": 1})
    text = reply.choices[0].message.content
    assert found["models"] == ["random", "base", "written"] and found["logprobs"] == 20
    assert {found[name] for name in ("reply", "stream", "helper", "response", "responses")} == {text}
    assert found["call"]["name"] == "add" and json.loads(found["call"]["arguments"])["a"] in (1, 2)
    assert found["json"]["a"] in (1, 2) and found["aborted"]
    assert found["errors"] == [
        [404, "NotFoundError", "model"],
        [400, "BadRequestError", "temperature"],
        [400, "BadRequestError", "frobnicate"],
    ]


@pytest.mark.skipif(NODE is None or not CLIENT.is_dir(), reason="needs Node and the npm package openai")
def test_the_program_of_the_guide_in_javascript(server: Any, tmp_path: Path) -> None:
    assert NODE is not None
    [program] = re.findall(r"```js\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert "127.0.0.1:8000" in program and 'from "openai"' in program
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "openai").symlink_to(CLIENT)
    script = tmp_path / "program.mjs"
    script.write_text(program.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace("stream: true", SHORT))
    done = subprocess.run([NODE, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.fixture
def nginx(server: Any, tmp_path: Path) -> Iterator[int]:
    """The port of nginx before the server."""
    if NGINX is None:
        pytest.skip("there is no nginx; name one in MMCLI_NGINX")
    [location] = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert "127.0.0.1:8000" in location
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = " ".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    location = location.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {places} server {{ listen 127.0.0.1:{port};\n{location} }} }}\n"
    )
    with subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]) as process:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


def test_nginx_passes_streams_on_as_they_come(server: Any, writes: Callable[..., Any], nginx: int) -> None:
    writes("rain ", seconds=0.03, end=False)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{nginx}/v1", api_key="none", max_retries=0)
    start, times = time.monotonic(), []
    for chunk in client.chat.completions.create(model="written", messages=HELLO, stream=True, max_tokens=30):
        if chunk.choices[0].delta.content:
            times.append(time.monotonic() - start)
    assert len(times) == 30 and times[0] < 0.5 * times[-1] and times[-1] - times[0] > 0.5
    assert client.chat.completions.create(model="written", messages=HELLO, max_tokens=2).choices[0].message.content


def test_a_client_that_leaves_nginx_frees_its_slot(server: Any, writes: Callable[..., Any], nginx: int) -> None:
    scheduler = server.models["written"].scheduler
    writes("rain ", seconds=0.02, end=False)
    connection = http.client.HTTPConnection("127.0.0.1", nginx, timeout=10)
    body = json.dumps({"model": "written", "messages": HELLO, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.readline()
    assert scheduler.busy == 1
    answer.close()
    connection.close()
    end = time.monotonic() + 2
    while scheduler.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert scheduler.busy == 0
