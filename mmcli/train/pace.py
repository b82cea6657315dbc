"""The pace of a training against its own usual one, and what else keeps the machine busy where it fell."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from pathlib import Path

SLOW = 3.0  # times the usual seconds per token
LEAST_STEPS = 20  # before a pace is usual
WINDOW_SECONDS, WINDOW_STEPS = 3.0, 3  # what is compared covers both
LOOK_EVERY_SECONDS = 60.0  # at the load, while steps are slow
SAMPLE_SECONDS = 0.2  # in which the busiest process is found
KEPT = 256  # paces of which the usual one is the median
MEDIAN_EVERY = 16  # of them, new ones, is it taken again


class Pace:
    """Tells when the newest steps take several times as long as those of the whole training, token for token."""

    def __init__(self) -> None:
        self._paces: list[float] = []  # seconds per token, of equally spaced steps
        self._every, self._steps = 1, 0
        self._window: deque[tuple[float, int]] = deque()
        self._usual = 0.0
        self._load = ""
        self._looked = float("-inf")

    def add(self, seconds: float, tokens: int) -> str:
        """After a step: that the machine is busy, and with what, while the newest steps are slow; else empty."""
        ratio = self._ratio(seconds, tokens)
        if ratio <= SLOW:
            return ""
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY_SECONDS:
            self._load, self._looked = describe_load(), time.monotonic()
        load = f" ({self._load})" if self._load else ""
        return f"the machine is busy: steps take {ratio:.1f}x as long{load}"

    def _ratio(self, seconds: float, tokens: int) -> float:
        """The median seconds per token of the newest steps over the usual ones; 1 until there is a usual pace."""
        self._window.append((seconds, max(1, tokens)))
        total = sum(each for each, _ in self._window)
        while len(self._window) > WINDOW_STEPS and total - self._window[0][0] >= WINDOW_SECONDS:
            total -= self._window.popleft()[0]
        self._steps += 1
        if self._steps % self._every == 0:
            self._paces.append(seconds / max(1, tokens))
            if len(self._paces) == KEPT:
                self._paces, self._every = self._paces[::2], 2 * self._every
            if self._steps <= LEAST_STEPS or len(self._paces) % MEDIAN_EVERY == 0:
                self._usual = statistics.median(self._paces)
        short = total < WINDOW_SECONDS or len(self._window) < WINDOW_STEPS
        if self._steps < LEAST_STEPS or short or not self._usual:
            return 1.0
        return statistics.median(each / tokens for each, tokens in self._window) / self._usual


def describe_load() -> str:
    """`load 3.9 on 2 cores, python3 98%`: the load average and the busiest process."""
    try:
        average, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (OSError, AttributeError):
        return ""  # Windows
    busiest = _busiest_process()
    return f"load {average:.1f} on {cores} core{'s' if cores > 1 else ''}" + (f", {busiest}" if busiest else "")


def _busiest_process() -> str:
    """The other process that takes most CPU time, and its share of a core; empty where there is none, or no /proc."""
    before, started = _cpu_seconds(), time.perf_counter()
    time.sleep(SAMPLE_SECONDS)
    after, elapsed = _cpu_seconds(), time.perf_counter() - started
    used = {pid: seconds - before[pid][1] for pid, (_, seconds) in after.items() if pid in before}
    pid = max(used, key=lambda each: used[each], default=None)
    if pid is None or used[pid] < 0.1 * elapsed:
        return ""
    return f"{after[pid][0]} {used[pid] / elapsed:.0%}"


def _cpu_seconds() -> dict[str, tuple[str, float]]:
    """(name, CPU seconds) of every process that is not of this training, by its number."""
    found = {}
    own_group, own = os.getpgrp(), {str(os.getpid())} | ({str(os.getppid())} if "LOCAL_RANK" in os.environ else set())
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid = path.parent.name
        try:
            name, _, fields = path.read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended
        _, parent, group, *rest = fields.split()
        if not own & {pid, parent} and int(group) != own_group:  # neither this rank nor another one, nor a worker
            found[pid] = (name, (int(rest[8]) + int(rest[9])) / ticks)
    return found
