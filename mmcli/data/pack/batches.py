"""Batches: packed rows as arrays, which rows of which step decided by (seed, step) alone.

B batch rows, T tokens in a row. `labels_BT[b, t]` is the token that follows `ids_BT[b, t]` in its document: labels are
shifted already. There is no other state than the step's number, so a resumed run continues with the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.packing import Rows
from mmcli.errors import UserError

NO_LABEL = -100
PADDING = -1


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


def make_batch(cache: TokenCache, rows: Rows, which: Sequence[int] | np.ndarray) -> Batch:
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

    The steps run through the rows in a new order for each epoch; a step may span epochs, also several where
    there are fewer rows than the batch size.
    """

    def __init__(
        self,
        cache: TokenCache,
        rows: Rows,
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
            UserError: there are no rows.
        """
        if batch_size < 1 or micro_batch < 1:
            raise UserError(f"batch size {batch_size}, micro-batch {micro_batch}", "give 1 or more for both")
        if not len(rows):
            raise UserError("there is no row to train on", "give more data")
        self._cache, self._rows = cache, rows
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._draw)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every row is seen once."""
        return len(self._rows) / self._batch_size

    def _draw(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch. Raw generator output: NumPy keeps that stream the same for ever."""
        draws = np.random.Philox(key=[self._seed % 2**64, epoch + 1]).random_raw(len(self._rows))
        return np.argsort(draws, kind="stable")

    def row_numbers(self, step: int) -> np.ndarray:
        """The rows of step `step` (from 0)."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, within = np.divmod(places, len(self._rows))
        return np.array([self._order(int(e))[w] for e, w in zip(epochs, within, strict=True)], dtype=np.int64)

    def parts(self, step: int, micro_batch: int | None = None) -> list[np.ndarray]:
        """The rows of each micro-batch of step `step` (from 0): of another size where one is given."""
        return in_parts(self.row_numbers(step), micro_batch or self._micro_batch)

    def make(self, part: np.ndarray) -> Batch:
        """The micro-batch of the rows numbered `part`."""
        return make_batch(self._cache, self._rows, part)

    def micro_batches(self, step: int) -> list[Batch]:
        """Every micro-batch of step `step` (from 0)."""
        return [self.make(part) for part in self.parts(step)]


def evaluation_batches(cache: TokenCache, rows: Rows, micro_batch: int) -> Iterator[Batch]:
    """Every row once, in order."""
    return (make_batch(cache, rows, part) for part in in_parts(np.arange(len(rows)), micro_batch))


def in_parts(which: np.ndarray, size: int) -> list[np.ndarray]:
    """Row numbers, `size` of them at a time."""
    return [which[first : first + size] for first in range(0, len(which), size)]
