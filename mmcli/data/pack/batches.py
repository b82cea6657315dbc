"""Batches: packed rows as arrays, which rows of which step decided by (seed, step) alone.

B batch rows, T tokens in a row. `labels_BT[b, t]` is the token that follows `ids_BT[b, t]` in its document: labels are
shifted already. There is no other state than the step's number, so a resumed run continues with the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.course import Course
from mmcli.data.pack.packing import RowSet
from mmcli.errors import UserError

NO_LABEL = -100
PADDING = -1
MOST_SOURCES = 2**10  # in the numbers of the random streams
MOST_STREAMS = 2**31


@dataclass(frozen=True)
class Batch:
    """One micro-batch, int64.

    Attributes:
        ids_BT: input tokens; the cache's pad id in padding.
        labels_BT: the next token of the document, -100 where it is not trained and in padding.
        positions_BT: place in its segment, from 0; 0 in padding.
        segments_BT: number of the segment in its row, from 0; -1 in padding.
    """

    ids_BT: np.ndarray
    labels_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.ids_BT)

    @property
    def tokens(self) -> int:
        """Places that are not padding."""
        return int((self.segments_BT != PADDING).sum())

    @property
    def targets(self) -> int:
        """Labels that are trained."""
        return int((self.labels_BT != NO_LABEL).sum())


def make_batch(cache: TokenCache, rows: RowSet, which: Sequence[int] | np.ndarray) -> Batch:
    """The rows numbered `which`, in that order."""
    shape = (len(which), rows.seq_len)
    ids_BT = np.full(shape, cache.pad_id, dtype=np.int64)
    labels_BT = np.full(shape, NO_LABEL, dtype=np.int64)
    positions_BT = np.zeros(shape, dtype=np.int64)
    segments_BT = np.full(shape, PADDING, dtype=np.int64)
    for b, row in enumerate(which):
        at = 0
        for segment, (document, start, length) in enumerate(rows.pieces(int(row))):
            place = slice(at, at + length)
            tokens = cache.ids(document, start, start + length + 1)
            ids_BT[b, place] = tokens[:-1]
            labels_BT[b, place] = tokens[1:]
            if cache.masked:
                labels_BT[b, place][cache.trained(document, start + 1, start + length + 1) == 0] = NO_LABEL
            positions_BT[b, place] = np.arange(length)
            segments_BT[b, place] = segment
            at += length
    return Batch(ids_BT, labels_BT, positions_BT, segments_BT)


class Batches:
    """The batches of a training run: row r of step s is a function of (seed, s, r).

    The steps run through the rows in a new order for each epoch: through the shards, and through the rows of each. A
    step may span epochs, also several where there are fewer rows than the batch size. Where the shares of sources
    change (`TokenCache.course`), each source is run through like that, and `course.py` says whose turn it is.
    """

    def __init__(
        self,
        cache: TokenCache,
        rows: RowSet,
        *,
        batch_size: int,
        micro_batch: int,
        seed: int,
    ) -> None:
        """
        Args:
            batch_size: rows of one optimizer step.
            micro_batch: rows that are computed at once, at most.

        Raises:
            UserError: there are no rows, or none of a source whose share changes.
        """
        if batch_size < 1 or micro_batch < 1:
            raise UserError(f"batch size {batch_size}, micro-batch {micro_batch}", "give 1 or more for both")
        if not len(rows):
            raise UserError("there is no row to train on", "give more data")
        self._cache, self._rows = cache, rows
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._seed = seed
        self._counts_SK = np.array(rows.shard_rows, dtype=np.int64)
        shards, sources = self._counts_SK.shape
        self._order = lru_cache(maxsize=2 * sources)(self._draw)
        self._shards = lru_cache(maxsize=2 * sources)(self._draw_shards)
        self._firsts_SK = (np.cumsum(self._counts_SK) - self._counts_SK.ravel()).reshape(shards, sources)
        self._course: Course | None = None
        if cache.course is not None:
            counts = tuple(self._counts_SK.sum(axis=0).tolist())
            if not all(counts):
                raise UserError("a source with a weight has no row to train on", "leave it out of --data")
            self._course = Course(counts, cache.course, len(rows))

    def plan(self, steps: int) -> None:
        """Tell how many steps the training has, over which shares change; until then: an epoch's."""
        if self._course is not None:
            self._course = replace(self._course, total=steps * self._batch_size)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every row is seen once."""
        return len(self._rows) / self._batch_size

    def _random(self, stream: int, epoch: int, count: int) -> np.ndarray:
        """An order of so many. Raw generator output: NumPy keeps that stream the same for ever."""
        draws = np.random.Philox(key=[self._seed % 2**64, (stream << 32) + epoch + 1]).random_raw(count)
        return np.argsort(draws, kind="stable")

    def _draw(self, source: int, shard: int, epoch: int) -> np.ndarray:
        """The order of the rows of a shard in an epoch."""
        several = len(self._counts_SK) > 1
        stream = (shard + 1 if several else 0) * MOST_SOURCES + (source + 1 if self._course is not None else 0)
        return self._random(stream, epoch, int(self._counts_SK[shard, source]))

    def _draw_shards(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards in an epoch, and how many rows have gone by at the end of each."""
        order = self._random(MOST_STREAMS + source, epoch, len(self._counts_SK))
        return order, np.cumsum(self._counts_SK[order, source])

    def _row(self, source: int, number: int) -> int:
        """The row that is read as number `number` of a source (of all of them where rows may have several)."""
        epoch, within = divmod(number, int(self._counts_SK[:, source].sum()))
        order, ends = self._shards(source, epoch)
        place = int(np.searchsorted(ends, within, side="right"))
        shard = int(order[place])
        within -= int(ends[place]) - int(self._counts_SK[shard, source])
        return int(self._firsts_SK[shard, source] + self._order(source, shard, epoch)[within])

    def row_numbers(self, step: int) -> np.ndarray:
        """The rows of step `step` (from 0)."""
        first, count = step * self._batch_size, self._batch_size
        if self._course is None:
            return np.array([self._row(0, number) for number in range(first, first + count)], dtype=np.int64)
        return np.array([self._row(source, n) for source, n in self._course.places(first, count)], dtype=np.int64)

    def parts(self, step: int, micro_batch: int | None = None) -> list[np.ndarray]:
        """The rows of each micro-batch of step `step` (from 0): of another size where one is given."""
        return in_parts(self.row_numbers(step), micro_batch or self._micro_batch)

    def make(self, part: np.ndarray) -> Batch:
        """The micro-batch of the rows numbered `part`."""
        return make_batch(self._cache, self._rows, part)

    def micro_batches(self, step: int) -> list[Batch]:
        """Every micro-batch of step `step` (from 0)."""
        return [self.make(part) for part in self.parts(step)]


def evaluation_batches(cache: TokenCache, rows: RowSet, micro_batch: int) -> Iterator[Batch]:
    """Every row once, in order."""
    return (make_batch(cache, rows, part) for part in in_parts(np.arange(len(rows)), micro_batch))


def in_parts(which: np.ndarray, size: int) -> list[np.ndarray]:
    """Row numbers, `size` of them at a time."""
    return [which[first : first + size] for first in range(0, len(which), size)]
