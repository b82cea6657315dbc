"""Whole conversations as rows: unlike what a model learns to write, they keep their last token, whose state is scored.

Shapes: B rows, T tokens. The label of a row, one alone, is at its last token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mmcli.api import Batch, PairBatch, Pairs

NO_LABEL, PADDING = -100, -1
LENGTH_STEP = 64  # rows are as long as the longest of a micro-batch, rounded up


class WholePairs(Pairs):
    """Preference pairs whose rows hold all tokens of a side."""

    def batch(self, part: np.ndarray) -> PairBatch:
        """The micro-batch of the pairs `part`, on the host; the reference is 0."""
        pieces = [piece for number in part for piece in self.rows.pieces(int(number))]
        rows = whole_rows([self.cache.ids(document) for document, _, _ in pieces], self.cache.pad_id, self.rows.seq_len)
        return PairBatch.from_batch(rows, self.reference_N2[part], self.config, self.term, pin=self.pin)


def whole_rows(sequences: Sequence[np.ndarray], pad_id: int, longest: int) -> Batch:
    """Each sequence in a row of its own.

    Args:
        longest: places that a row may have.
    """
    lengths = [len(ids) for ids in sequences]
    shape = (len(sequences), min(-(-max(lengths) // LENGTH_STEP) * LENGTH_STEP, longest))
    ids_BT, labels_BT = np.full(shape, pad_id, dtype=np.int64), np.full(shape, NO_LABEL, dtype=np.int64)
    positions_BT, segments_BT = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING, dtype=np.int64)
    for b, (ids, length) in enumerate(zip(sequences, lengths, strict=True)):
        ids_BT[b, :length] = ids
        labels_BT[b, length - 1] = ids[-1]
        positions_BT[b, :length] = np.arange(length)
        segments_BT[b, :length] = 0
    return Batch(ids_BT, labels_BT, positions_BT, segments_BT)


def last_places(labels_BT: Tensor) -> Tensor:
    """[B] the place of the label of each row."""
    return (labels_BT >= 0).int().argmax(dim=1)
