"""A tiny model with random weights behind `mmcli serve`, for the benchmarks that ask it thousands of times."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "tiny"
PATIENCE = 30.0  # seconds; a request that takes longer hangs
LINES = ["The rain falls on the hills.", "Hello, a cloud is water.", "你好，世界"] * 3


@dataclass
class Served:
    """A server, and what went wrong with it."""

    port: int
    pid: int
    failures: list[str] = field(default_factory=list)

    def get(self, path: str) -> str:
        """The text of a path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str) -> int:
        """A counter or gauge of the model."""
        return int(re.findall(rf"^{name}\{{[^}}]*\}} (\d+)$", self.get("/metrics"), re.MULTILINE)[0])

    def answered(self) -> dict[int, int]:
        """Answers so far by status."""
        counts: dict[int, int] = {}
        found = re.findall(r'^mmcli_requests_total\{.*status="(\d+)"\} (\d+)$', self.get("/metrics"), re.MULTILINE)
        for status, count in found:
            counts[int(status)] = counts.get(int(status), 0) + int(count)
        return counts

    def memory(self) -> int:
        """Resident memory of the server in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    def report(self, kind: str, before: dict[int, int]) -> None:
        """Print what a kind of requests led to; answers of 5xx are a failure."""
        counts = {status: count - before.get(status, 0) for status, count in self.answered().items()}
        errors = sum(count for status, count in counts.items() if status >= 500)
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()) if count)
        print(f"{kind}: {sum(counts.values()):,} answers: {statuses}", flush=True)
        if errors:
            self.failures.append(f"{kind}: {errors} answers of 5xx")


@contextmanager
def serving(backend: str) -> Iterator[Served]:
    """A server of the tiny model until the end, which has to be an orderly one."""
    from mmcli.api import ModelConfig, Transformer, save_model, train_tokenizer

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / MODEL
        config = ModelConfig(
            dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=1024, init_std=0.2
        )
        save_model(folder, Transformer(config), config, train_tokenizer(LINES, vocab_size=400))
        command = [sys.executable, "-m", "mmcli", "serve", str(folder), "--port", "0", "--queue", "1000"]
        command += ["--backend", backend, "--device", "cpu"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the server did not start")
            served = Served(int(address.rpartition(":")[2]), process.pid)
            try:
                yield served
            finally:
                process.terminate()
                if process.wait() != 128 + 15:
                    served.failures.append(f"the server ended with {process.returncode}")
