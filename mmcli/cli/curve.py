"""The curve of a whole training in bounded memory, and curves and bars as one line of block characters."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
SMOOTHING_STEPS = 50  # of the smoothed value, an exponential mean; at first a quarter of the steps so far


class Curve:
    """A value of every step, as the means of equal spans of steps.

    A span is one step long at first and doubles whenever there are `2 * spans` of them, so that adding takes constant
    time and memory however long the training is.
    """

    def __init__(self, spans: int = 512) -> None:
        self._spans = spans
        self._means: list[float] = []
        self._width = 1  # steps in a span
        self._sum, self._count = 0.0, 0  # of the span that is not full yet
        self.added = 0
        self.first = 0.0
        self.smoothed = 0.0

    def add(self, value: float) -> None:
        """The value of the next step."""
        self.first = value if self.added == 0 else self.first
        self.added += 1
        self.smoothed += (value - self.smoothed) / min(SMOOTHING_STEPS, max(1.0, self.added / 4))
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count == self._width:
            self._means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self._means) == 2 * self._spans:
            means = self._means
            self._means = [(one + other) / 2 for one, other in zip(means[::2], means[1::2], strict=True)]
            self._width *= 2

    def points(self, count: int) -> list[float]:
        """The whole curve as at most `count` means of equal spans."""
        means = list(self._means)  # another thread may be adding
        if len(means) <= count:
            return means
        edges = [index * len(means) // count for index in range(count + 1)]
        return [statistics.fmean(means[low:high]) for low, high in itertools.pairwise(edges)]


def sparkline(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """One block character a value, from the lowest to the highest.

    What is over four times as far from the one end as the median is cut off, so that the first losses of a training do
    not flatten the rest.
    """
    if not values:
        return ""
    low, middle, high = min(values), statistics.median(values), max(values)
    top, bottom = min(high, low + 4 * (middle - low)), max(low, high - 4 * (high - middle))
    if top <= bottom:  # one half of the values or more are equal
        top, bottom = high, low
    return bars(values, bottom, top, blocks)


def bars(values: Sequence[float], low: float, high: float, blocks: str = BLOCKS) -> str:
    """One block character a value on the scale from `low` to `high`."""
    span = high - low
    shares = [min(1.0, max(0.0, (value - low) / span)) if span > 0 else 0.0 for value in values]
    return "".join(blocks[min(len(blocks) - 1, int(share * len(blocks)))] for share in shares)
