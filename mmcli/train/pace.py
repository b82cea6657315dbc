"""The pace of a training against its own usual one, and what else keeps the machine busy where it fell."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque

from mmcli.machine import busy_processes, load_average

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
    average, cores = load_average(), os.cpu_count() or 1
    if average is None:
        return ""  # Windows
    busy = busy_processes(SAMPLE_SECONDS, least=0.1)
    busiest = f", {busy[0].name} {busy[0].cores:.0%}" if busy else ""
    return f"load {average:.1f} on {cores} core{'s' if cores > 1 else ''}" + busiest
