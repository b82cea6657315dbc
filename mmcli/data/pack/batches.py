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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            batch_size: rows of one optimizer step over all ranks.
            micro_batch: rows that one rank computes at once, at most.
            rank, world: this process among all.

        Raises:
            UserError: the batch size is not a multiple of the ranks; there are no rows.
        """
        if batch_size < 1 or micro_batch < 1:
            raise UserError(f"batch size {batch_size}, micro-batch {micro_batch}", "give 1 or more for both")
        if batch_size % world:
            what = f"--batch-size {batch_size} is not a multiple of the {world} processes"
            raise UserError(what, f"give a multiple of {world}, such as {-(-batch_size // world) * world}")
        if not len(rows):
            raise UserError("there is no row to train on", "give more data")
        self._cache, self._rows = cache, rows
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._seed, self._rank, self._world = seed, rank, world
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
        """The rows of this rank in step `step` (from 0)."""
        places = np.arange(step * self._batch_size + self._rank, (step + 1) * self._batch_size, self._world)
        epochs, within = np.divmod(places, len(self._rows))
        return np.array([self._order(int(e))[w] for e, w in zip(epochs, within, strict=True)], dtype=np.int64)

    def micro_batches(self, step: int, micro_batch: int | None = None) -> list[Batch]:
        """This rank's share of step `step` (from 0), in micro-batches: of another size where one is given."""
        return list(_in_parts(self._cache, self._rows, self.row_numbers(step), micro_batch or self._micro_batch))


def evaluation_batches(cache: TokenCache, rows: Rows, micro_batch: int) -> Iterator[Batch]:
    """Every row once, in order."""
    return _in_parts(cache, rows, np.arange(len(rows)), micro_batch)


def _in_parts(cache: TokenCache, rows: Rows, which: np.ndarray, micro_batch: int) -> Iterator[Batch]:
    for first in range(0, len(which), micro_batch):
        yield make_batch(cache, rows, which[first : first + micro_batch])
