"""Ways to do the same, measured taking turns, each in a process of its own."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MARK = "benchmark: "  # what a contestant says starts with it


class Contestant:
    """A step in a process of its own, with its own allocator, caches and peak memory; it runs when told to."""

    def __init__(self, name: str, *arguments: str) -> None:
        """Starts this script again with `--only name`, which `serve` answers; builds the step and warms it up."""
        self.name = name
        self.seconds: list[float] = []
        self.peak_mib = 0.0
        command = [sys.executable, sys.argv[0], "--only", name, *arguments]
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


def serve(make: Callable[[], Callable[[], None]], *, warm_up: int = 2) -> None:
    """The other side of a `Contestant`: build the step, warm it up, then run it once for every line of stdin."""
    step = make()
    for _ in range(warm_up):
        step()
    print(f"{MARK}0", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(f"{MARK}{time.perf_counter() - started}", flush=True)
    print(f"{MARK}{peak_memory_mib()}", flush=True)


def compete(names: Iterable[str], repeats: int, *arguments: str) -> dict[str, Contestant]:
    """The steps of these names, measured taking turns; this script gets the arguments again for each."""
    contestants = {name: Contestant(name, *arguments) for name in names}
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
    """Largest resident size of this process so far, or of a process that it started, if that is more.

    Its own is of this program alone, as /proc says it: getrusage counts the parent's before the program began, too.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return max(children, int(line.split()[1]) / 1024)
    raise SystemExit("this system does not tell the peak memory of a process (/proc/self/status)")
