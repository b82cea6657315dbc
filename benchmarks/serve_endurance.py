"""`mmcli serve` over thousands of requests: no 5xx, no hang, no growing memory.

A tiny model with random weights is served. First clients send ordinary requests of every kind, streams that they leave
half-way among them. Their words are few: the tokenizer keeps the ids of the first 10,000 that a thread meets (8 MB),
which is no leak. Then schemathesis sends what it makes of the server's OpenAPI document, valid and not, where it is
installed (`pip install schemathesis`). The server's resident memory is read at the 1,000th request and at the last of
each kind; a request that takes longer than 30 seconds is a hang. The last line is `serve endurance failures=F goal=0`.

    python benchmarks/serve_endurance.py --requests 10000 --fuzz 10000 --check
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "tiny"
CLIENTS = 8
PATIENCE = 30.0  # seconds
WARM = 1000  # requests after which memory should not grow
GROWTH = 1.05  # of resident memory from then on
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "add", "parameters": SCHEMA}
WORDS = [
    f"{a}{b}" for a in ("rain", "cloud", "hill", "river", "你好", "世界") for b in ("", "s", "y", "ing", "吗", "。")
]


@dataclass
class Watch:
    """A server, what it answered, and its memory."""

    port: int
    pid: int
    warm: int = 0  # bytes of resident memory once WARM requests were answered
    failures: list[str] = field(default_factory=list)

    def answered(self) -> dict[int, int]:
        """Answers so far by status."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        counts: dict[int, int] = {}
        for status, count in re.findall(r'^mmcli_requests_total\{.*status="(\d+)"\} (\d+)$', text, re.MULTILINE):
            counts[int(status)] = counts.get(int(status), 0) + int(count)
        return counts

    def memory(self) -> int:
        """Resident memory of the server in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    def report(self, kind: str, before: dict[int, int]) -> None:
        """Print what a kind of requests led to, and keep what must not be."""
        counts = {status: count - before.get(status, 0) for status, count in self.answered().items()}
        errors = sum(count for status, count in counts.items() if status >= 500)
        last = self.memory()
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()) if count)
        print(f"{kind}: {sum(counts.values()):,} answers: {statuses}")
        print(
            f"{kind}: memory {self.warm / 1e6:.0f} MB at request {WARM:,}, {last / 1e6:.0f} MB at the last", flush=True
        )
        if errors:
            self.failures.append(f"{kind}: {errors} answers of 5xx")
        if self.warm and last > GROWTH * self.warm:
            self.failures.append(f"{kind}: memory grew by {last / self.warm - 1:.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="ordinary ones")
    parser.add_argument("--fuzz", type=int, default=2000, help="made by schemathesis, with a body")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--check", action="store_true", help="exit 1 if anything failed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        process, port = serve(Path(place), asked.backend)
        watch = Watch(port, process.pid)
        try:
            ordinary(watch, asked.requests)
            if importlib.util.find_spec("schemathesis") is None:
                print("fuzz: schemathesis is not installed")
            elif asked.fuzz:
                fuzz(watch, Path(place), asked.fuzz)
        finally:
            process.terminate()
            if process.wait() != 128 + 15:
                watch.failures.append(f"the server ended with {process.returncode}")
    for failure in watch.failures:
        print(failure)
    print(f"serve endurance failures={len(watch.failures)} goal=0")
    return 1 if asked.check and watch.failures else 0


def serve(place: Path, backend: str) -> tuple[subprocess.Popen[str], int]:
    """The server of a tiny model, and its port."""
    from mmcli.api import ModelConfig, Transformer, save_model, train_tokenizer

    lines = ["The rain falls on the hills.", "Hello, a cloud is water.", "你好，世界"] * 3
    config = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=768, init_std=0.2)
    save_model(place / MODEL, Transformer(config), config, train_tokenizer(lines, vocab_size=400))
    command = [sys.executable, "-m", "mmcli", "serve", str(place / MODEL), "--port", "0", "--queue", "1000"]
    process = subprocess.Popen([*command, "--backend", backend, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        raise SystemExit("the server did not start")
    return process, int(address.rpartition(":")[2])


def kinds(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """(path, body) of an ordinary request."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
    chat = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": draw.randint(1, 12)}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    function = {"type": "function", "function": TOOL}
    response = {"model": MODEL, "input": text, "max_output_tokens": 8, "stream": draw.random() < 0.5}
    return draw.choice(
        [
            ("chat/completions", chat),
            ("chat/completions", {**chat, "stream": True, "logprobs": True, "top_logprobs": 3}),
            ("chat/completions", {**chat, "n": 3, "stop": "a"}),
            ("chat/completions", {**chat, "max_tokens": 30, "response_format": form}),
            ("chat/completions", {**chat, "max_tokens": 40, "tools": [function], "tool_choice": "required"}),
            ("chat/completions", {**chat, "temperature": -1}),
            ("completions", {"model": MODEL, "prompt": [text, text + "x"], "max_tokens": 5, "stream": True}),
            ("responses", response),
            ("responses", {**response, "tools": [{"type": "function", **TOOL}]}),
        ]
    )


def ordinary(watch: Watch, count: int) -> None:
    """Requests of every kind from several clients."""
    before, lock, done = watch.answered(), threading.Lock(), 0

    def client(number: int) -> None:
        nonlocal done
        draw = random.Random(number)
        while True:
            with lock:
                if done >= count:
                    return
                done += 1
                if done == WARM:
                    watch.warm = watch.memory()
            path, body = kinds(draw)
            connection = http.client.HTTPConnection("127.0.0.1", watch.port, timeout=PATIENCE)
            try:
                connection.request("POST", f"/v1/{path}", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if body.get("stream") and draw.random() < 0.3:
                    answer.readline()  # and away
                else:
                    answer.read()
            except TimeoutError:
                watch.failures.append(f"ordinary: {path} took longer than {PATIENCE:g} s")
            except (OSError, http.client.HTTPException) as error:
                watch.failures.append(f"ordinary: {path}: {error!r}")
            finally:
                connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.report("ordinary", before)


def fuzz(watch: Watch, place: Path, count: int) -> None:
    """Requests that schemathesis makes, of which some get as far as the model."""
    before, watch.warm = watch.answered(), 0
    with urllib.request.urlopen(f"http://127.0.0.1:{watch.port}/openapi.json", timeout=PATIENCE) as answer:
        document = json.load(answer)
    message = {"type": "object", "required": ["role", "content"], "additionalProperties": False}
    roles = {"enum": ["system", "user", "assistant", "tool"]}
    message["properties"] = {"role": roles, "content": {"type": "string", "maxLength": 50}}
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            schema["properties"]["model"] = {"enum": [MODEL]}
    messages = document["components"]["schemas"]["ChatRequest"]["properties"]["messages"]
    messages |= {"maxItems": 5, "items": {"anyOf": [message, message, {"type": "object"}]}}
    path = place / "openapi.json"
    path.write_text(json.dumps(document))
    bodies = sum("requestBody" in operation for each in document["paths"].values() for operation in each.values())
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", f"http://127.0.0.1:{watch.port}"]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--mode", "all", "--seed", "1"]
    command += ["--max-examples", str(-(-count // bodies)), "--request-timeout", str(PATIENCE), "--no-color"]
    command += ["--continue-on-failure", "--generation-database", "none", "--no-shrink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place) as process:
        while process.poll() is None and not watch.warm:
            time.sleep(0.5)
            if sum(watch.answered().values()) - sum(before.values()) >= WARM:
                watch.warm = watch.memory()
        output, _ = process.communicate()
    if process.returncode:
        watch.failures.append(f"fuzz: schemathesis ended with {process.returncode}:\n{output[-3000:]}")
    watch.report("fuzz", before)


if __name__ == "__main__":
    sys.exit(main())
