"""Preference pairs as rows: both sequences of a pair, each in a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batch, make_batch
from mmcli.data.pack.packing import Rows
from mmcli.data.pack.selection import Selection
from mmcli.errors import UserError

LENGTH_STEP = 64  # rows are as long as the longest of their micro-batch, rounded up: few shapes, little padding


@dataclass(frozen=True)
class PairFit:
    """Which pairs of a cache can be trained on once both sides are cut at `seq_len` tokens.

    Attributes:
        usable_N: [N] bool, each side has a token left to train on, and the two differ.
        equal_N: [N] bool, both sides are the same in all that is left of them: there is nothing to prefer.
    """

    usable_N: np.ndarray
    equal_N: np.ndarray


def fit_pairs(cache: TokenCache, seq_len: int, *, whole: bool = False) -> PairFit:
    """How the pairs of a cache fit into `seq_len`.

    Args:
        whole: nothing is cut: usable is what fits with its last token, which predicts nothing.
    """
    lengths_N2 = np.asarray(cache.lengths).reshape(-1, 2) - 1
    usable_N, equal_N = np.ones(len(lengths_N2), dtype=bool), np.zeros(len(lengths_N2), dtype=bool)
    for pair in np.flatnonzero((lengths_N2 > seq_len).any(axis=1)).tolist():
        usable_N[pair] = all(cache.trained(side, 1, seq_len + 1).any() for side in (2 * pair, 2 * pair + 1))
    if whole:
        usable_N = np.asarray((lengths_N2 < seq_len).all(axis=1))
    cut_N2 = np.minimum(lengths_N2, seq_len)
    for pair in np.flatnonzero(cut_N2[:, 0] == cut_N2[:, 1]).tolist():
        end = int(cut_N2[pair, 0]) + 1
        equal_N[pair] = np.array_equal(cache.ids(2 * pair)[:end], cache.ids(2 * pair + 1)[:end])
    equal_N &= usable_N
    return PairFit(usable_N & ~equal_N, equal_N)


def pair_rows(cache: TokenCache, selection: Selection, seq_len: int, fit: PairFit | None = None) -> Rows:
    """One "row" for each pair, of two pieces: the chosen sequence, then the rejected one.

    A sequence longer than `seq_len` loses its end; a pair of which a side then has no token left to train on, or of
    which both sides are then the same, is dropped, and counted.

    Args:
        fit: of the cache and `seq_len`, where it is known already.

    Raises:
        UserError: no pair is left.
    """
    fit = fit or fit_pairs(cache, seq_len)
    documents = np.asarray(selection.documents).reshape(-1, 2)
    keep = fit.usable_N[documents[:, 0] // 2]
    pairs = cache.lengths_of(documents) - 1
    documents, lengths = documents[keep], np.minimum(pairs[keep], seq_len)
    if not len(documents):
        raise UserError(f"no preference pair fits into --seq-len {seq_len:,}", "give a longer --seq-len")
    return Rows(
        piece_doc=documents.ravel(),
        piece_start=np.zeros(documents.size, dtype=np.int64),
        piece_len=lengths.ravel(),
        row_offsets=np.arange(0, documents.size + 1, 2, dtype=np.int64),
        seq_len=seq_len,
        dropped=int((~keep).sum()),
        truncated=int((pairs[keep] > seq_len).any(axis=1).sum()),
        truncated_tokens=int(np.maximum(pairs[keep] - seq_len, 0).sum()),
    )


def pair_lengths(rows: Rows) -> np.ndarray:
    """[N] tokens of the longer side of each pair."""
    longest: np.ndarray = rows.piece_len.reshape(-1, 2).max(axis=1)
    return longest


def make_pair_batch(cache: TokenCache, rows: Rows, which: Sequence[int] | np.ndarray) -> Batch:
    """The pairs numbered `which`: row 2i is the chosen side of the i-th, row 2i + 1 the rejected one."""
    pieces = [piece for pair in which for piece in rows.pieces(int(pair))]
    columns = np.array(pieces, dtype=np.int64)
    longest = int(columns[:, 2].max())
    length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, rows.seq_len)
    single = Rows(columns[:, 0], columns[:, 1], columns[:, 2], np.arange(len(columns) + 1), length)
    return make_batch(cache, single, range(len(columns)))
