"""Rows of several sources in the order in which a training reads them while their shares change.

The shares go on a line from the first step to the last. Source k of shares a_k at the start and b_k at the end has
given C_k(u) = a_k u + (b_k - a_k) u**2 / 2 of all rows when a part u of the training is done. Its j-th row is read at
the u where C_k(u) is (j + 1/2) rows of the training, and all sources are merged by these times. So every step has the
shares of its moment to the row, the whole training has the mean of start and end, and what a step reads depends on its
number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NEAR = 64  # places


@dataclass(frozen=True)
class Course:
    """The merged order of the rows of K sources.

    Attributes:
        counts: rows of each source in an epoch; its share of all rows is the mean share that it has.
        shares: (share at the first step, share at the last) of each source; each of the two sums to 1.
        total: rows of the whole training. Further ones go on with the last shares.
    """

    counts: tuple[int, ...]
    shares: tuple[tuple[float, float], ...]
    total: int

    def places(self, first: int, count: int) -> list[tuple[int, int]]:
        """Places `first` to `first + count - 1` of the order: (source, which row of it, counted on through epochs)."""
        begins = self._shortly_before(first, count)
        ahead = first - sum(begins)
        found = [
            (self._time(source, number), source, number)
            for source, begin in enumerate(begins)
            for number in range(begin, begin + ahead + count)
        ]
        return [(source, number) for _, source, number in sorted(found)[ahead : ahead + count]]

    def _shortly_before(self, place: int, count: int) -> list[int]:
        """The rows of each source that are read at some time when there are `place` in all, or a few less."""
        low, high, step = max(0.0, (place - 1) / self.total), 0.0, len(self.counts) / self.total
        while sum(begins := self._before(low)) > place:
            low, high, step = max(0.0, low - step), low, 2 * step
        while place - sum(begins) > count + NEAR:
            middle = (low + high) / 2 if high else low + step
            if sum(found := self._before(middle)) > place:
                high = middle
            else:
                low, begins, step = middle, found, 2 * step
        return begins

    def _rows(self, source: int) -> float:
        """Rows that a source gives to the whole training."""
        return self.total * self.counts[source] / sum(self.counts)

    def _time(self, source: int, number: int) -> float:
        """When a row of a source is read, 1 being the end of the training; inf: never."""
        start, end = self.shares[source]
        mean = (start + end) / 2
        given = mean * (number + 0.5) / self._rows(source)
        if given > mean:
            return 1.0 + (given - mean) / end if end else math.inf
        return 2 * given / (start + math.sqrt(max(0.0, start * start + 2 * (end - start) * given)))

    def _before(self, time: float) -> list[int]:
        """The rows of each source that are read before a time."""
        found = []
        for source, (start, end) in enumerate(self.shares):
            within = min(time, 1.0)
            given = start * within + (end - start) * within * within / 2 + end * (time - within)
            number = max(0, math.ceil(given * self._rows(source) * 2 / (start + end) - 0.5))
            while number and self._time(source, number - 1) >= time:  # what rounding has left
                number -= 1
            while self._time(source, number) < time:
                number += 1
            found.append(number)
        return found
