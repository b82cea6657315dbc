"""`mmcli serve`: what is refused before anything is loaded, and the life of a server."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmcli.cli import serve
from mmcli.errors import MmcliError, UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.train import train_tokenizer


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve") / "runs"
    tokenizer = train_tokenizer(["The rain falls on the hills."] * 3, vocab_size=400)
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=400, max_seq_len=20_000)
    for stage in ("pretrain", "sft"):
        run = Run.create(root, stage, "tiny")
        save_model(run.model, Transformer(config), config, tokenizer)
        run.update(state="finished")
    return root


def refused(runs_dir: Path, *args: str) -> MmcliError:
    result = CliRunner().invoke(serve.app, [*args, "--runs-dir", str(runs_dir)])
    assert isinstance(result.exception, MmcliError), (result.stdout, result.stderr, result.exception)
    return result.exception


@pytest.mark.parametrize(
    ("args", "what", "fix"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in", "--api-key KEY"),
        (["--host", "example.com"], "lets other machines in", "--api-key KEY"),
        (["--api-key", ""], "--api-key is empty", "another key"),
        (["--slots", "0"], "--slots 0 is below 1", "give 1 or more"),
        (["--queue", "-1"], "--queue -1 is below 0", "give 0 or more"),
        (["--max-len", "1"], "--max-len 1 is below 2", "give 2 or more"),
        (["--cors", "example.com"], "--cors example.com is not an origin", "https://example.com"),
        (["9"], 'there is no run "9"', "mmcli runs list"),
        (["--slots", "1000000000"], "the models take up to", "fewer --slots"),
        (["1", "2", "--max-memory", "0.05"], "--max-memory allows 0.05 GB", "give fewer models"),
        (["--max-memory", "nan"], "--max-memory nan is not above 0", "such as 2 or 0.5"),
        (["--adapter", "tutor"], "--adapter tutor is not NAME=DIR", "--adapter tutor=runs/"),
        (["--adapter", "latest=x"], 'there is a "latest" already', "a name of its own"),
        (["1", "2", "--adapter", "a=x"], "--adapter goes with one model, and 2 are named", "name the model"),
        (["1", "2", "--host", "192.0.2.1", "--api-key", "k"], "cannot listen on 192.0.2.1", "another --host"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused(runs_dir: Path, args: list[str], what: str, fix: str) -> None:
    error = refused(runs_dir, *args)
    assert isinstance(error, UserError) and what in error.what and fix in error.fix


def test_a_port_that_is_taken_is_named(runs_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused(runs_dir, "--port", str(port)).what


def test_two_models_of_one_name_are_refused(runs_dir: Path, tmp_path: Path) -> None:
    model = runs_dir / "0002-sft-tiny" / "model"
    shutil.copytree(model, tmp_path / "c" / "model")
    shutil.copytree(model, tmp_path / "d" / "c")
    error = refused(runs_dir, str(tmp_path / "c" / "model"), str(tmp_path / "d" / "c"))
    assert 'two models are named "c"' in error.what
    error = refused(runs_dir, "--adapter", "0002-sft-tiny=x")
    assert 'two models are named "0002-sft-tiny"' in error.what and "the adapter another name" in error.fix


def test_without_the_packages_the_extra_is_named(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "NEEDED", ("fastapi_that_is_not_there",))
    error = refused(runs_dir)
    assert error.what == "mmcli serve needs fastapi_that_is_not_there"
    assert error.fix == 'install them: pip install "mmcli[serve]"'


def test_the_command_line_loads_no_server() -> None:
    code = "import sys; import mmcli.cli.serve; print([m for m in ('fastapi', 'uvicorn', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture
def process(runs_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`mmcli serve` of the sft model, and its port."""
    command = [sys.executable, "-m", "mmcli", "serve", "latest", "--port", "0", "--device", "cpu", "--slots", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's "&" has it ignored
    with subprocess.Popen([*command, "--runs-dir", str(runs_dir)], **pipes) as found:
        assert found.stdout is not None
        address = found.stdout.readline().strip()
        try:
            yield found, int(address.rpartition(":")[2])
        finally:
            found.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_within_seconds_although_a_reply_goes_on(
    process: tuple[subprocess.Popen[str], int], number: int
) -> None:
    server, port = process
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    prompt = [{"role": "user", "content": "The rain"}]
    body = {"model": "latest", "messages": prompt, "stream": True, "logprobs": True, "top_logprobs": 20}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert json.loads(answer.readline().removeprefix(b"data: "))["model"] == "0002-sft-tiny"
    server.send_signal(number)
    rest = answer.read().decode()
    assert "the server is stopping" in rest.splitlines()[-2] or "[DONE]" in rest
    _, stderr = server.communicate(timeout=10)
    assert server.returncode == 128 + number
    assert stderr.splitlines()[0] == "serving 0002-sft-tiny: 2 slots of 20,000 tokens"
    assert stderr.splitlines()[-2:] == [
        f"error: stopped by {signal.Signals(number).name}",
        "  fix: run the command again",
    ]
