"""What the step benchmarks share: a training step of a model of ours, and contestants that take turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from mmcli.data.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.train.config import OptimConfig
from mmcli.train.device import keep_freed_memory
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.optim import build_optimizer

THREADS = 2
MARK = "benchmark: "  # what a contestant says starts with it


def random_ids(rows: int, tokens: int, vocab_size: int) -> np.ndarray:
    """[rows, tokens + 1] random token ids."""
    return np.random.default_rng(0).integers(0, vocab_size, (rows, tokens + 1))


def our_step(config: ModelConfig, ids: np.ndarray, *, micro_batch: int, compiled: bool = True) -> Callable[[], None]:
    """A function that does one training step (forward, backward, clip, AdamW) on these rows, as the loop does."""
    keep_freed_memory()
    model = Transformer(config)
    optimizer = build_optimizer(model, OptimConfig())
    forward = torch.compile(model, dynamic=False) if compiled else model
    batches = []
    for first in range(0, len(ids), micro_batch):
        part = ids[first : first + micro_batch]
        positions = np.tile(np.arange(part.shape[1] - 1), (len(part), 1))
        batch = Batch(part[:, :-1].copy(), part[:, 1:].copy(), positions, np.zeros_like(positions))
        batches.append(TokenBatch.from_batch(batch, config, torch.device("cpu")))
    targets = float(sum(batch.counts["loss"] for batch in batches))

    def step() -> None:
        for batch in batches:
            terms = language_model_loss(forward, batch, config).terms
            total = terms["loss"].sum / targets
            if "balance" in terms:
                total = total + config.aux_loss_alpha * terms["balance"].sum / len(ids)
            total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class Contestant:
    """A step in a process of its own, with its own allocator, caches and peak memory; it runs when told to."""

    def __init__(self, name: str) -> None:
        """Starts this script again with `--only name`, which `serve` answers; builds the step and warms it up."""
        self.name = name
        self.seconds: list[float] = []
        self.peak_mib = 0.0
        command = [sys.executable, sys.argv[0], "--only", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.seconds.append(self._read())

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.peak_mib = self._read()
        self._process.wait()

    def _read(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return float(line.removeprefix(MARK))
        raise SystemExit(f"{self.name} ended too early")


def serve(make: Callable[[], Callable[[], None]]) -> None:
    """The other side of a `Contestant`: build the step, warm it up, then run it once for every line of stdin."""
    step = make()
    step()
    step()
    print(f"{MARK}0", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(f"{MARK}{time.perf_counter() - started}", flush=True)
    print(f"{MARK}{peak_memory_mib()}", flush=True)


def compete(names: Iterable[str], repeats: int) -> dict[str, Contestant]:
    """The steps of these names, measured taking turns."""
    contestants = {name: Contestant(name) for name in names}
    for _ in range(repeats):
        for contestant in contestants.values():
            contestant.step()
    for contestant in contestants.values():
        contestant.stop()
    return contestants


def median_ratio(one: list[float], other: list[float]) -> float:
    """Median over the turns of one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def peak_memory_mib() -> float:
    """Largest resident size of this process so far (of this program alone: getrusage counts the parent's, too)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell the peak memory of a process (/proc/self/status)")
