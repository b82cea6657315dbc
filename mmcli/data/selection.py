"""Which part of a token cache is used: all of it, or its training or held-out part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcli.data.cache import TokenCache

FEW = 8  # distinct documents; with fewer, the end of the longest one is held out instead of whole documents
MAX_HELD_OUT = 2**22  # tokens: more does not make a validation loss any sharper


@dataclass(frozen=True)
class Selection:
    """Spans of sequences: tokens `starts[i]` to `stops[i]` of sequence `documents[i]` (all [N] int64)."""

    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def whole(cls, cache: TokenCache, documents: np.ndarray | None = None) -> Selection:
        """All of these sequences, of every sequence if none are given."""
        which = np.arange(len(cache), dtype=np.int64) if documents is None else np.asarray(documents, dtype=np.int64)
        return cls(which, np.zeros(len(which), dtype=np.int64), np.asarray(cache.lengths)[which])

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each span."""
        return self.stops - self.starts

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def split_documents(
    cache: TokenCache, fraction: float, seed: int, *, max_tokens: int = MAX_HELD_OUT
) -> tuple[Selection, Selection]:
    """(training part, held-out part).

    A record is held out when a hash of its content and the seed falls below `fraction`: duplicates fall on the same
    side, and a record keeps its side when others are added. At least one record is held out, and no more than
    `max_tokens` tokens, whole records. Where texts are few (fewer than eight different ones) the end of the longest
    is held out instead; few conversations are never cut: with one alone, nothing is held out.

    Args:
        fraction: share of the records, 0 (nothing is held out) to below 1.
    """
    everything = Selection.whole(cache)
    if fraction <= 0:
        return everything, Selection.whole(cache, np.zeros(0, dtype=np.int64))
    hashes = _mix(np.asarray(cache.hashes[:: cache.sequences_per_record]), seed)  # [R] of the records
    distinct, group = np.unique(hashes, return_inverse=True)  # ascending; group[r]: where record r's hash is in it
    cuttable = not cache.masked and cache.sequences_per_record == 1
    if cuttable and len(distinct) < FEW:
        return _split_tail(cache, everything, group, fraction, max_tokens)
    if len(distinct) < 2:
        return everything, Selection.whole(cache, np.zeros(0, dtype=np.int64))
    lengths = np.asarray(cache.lengths).reshape(-1, cache.sequences_per_record).sum(axis=1)
    size = np.bincount(group, weights=lengths).astype(np.int64)  # tokens of each distinct record and its duplicates
    below = int((distinct < np.uint64(fraction * 2.0**64)).sum())
    fitting = int((np.cumsum(size) <= max_tokens).sum())
    count = min(max(1, min(below, fitting)), len(distinct) - 1)
    held = np.repeat(group < count, cache.sequences_per_record)
    where = np.arange(len(cache), dtype=np.int64)
    return Selection.whole(cache, where[~held]), Selection.whole(cache, where[held])


def _split_tail(
    cache: TokenCache, everything: Selection, group: np.ndarray, fraction: float, max_tokens: int
) -> tuple[Selection, Selection]:
    """Hold out the end of the longest text; its duplicates lose it too."""
    lengths = everything.lengths
    longest = int(np.argmax(lengths))
    length = int(lengths[longest])
    held = min(max(2, round(fraction * everything.tokens)), max_tokens, length // 2)
    if held < 2 or length - held < 2:  # both parts need a token and its next
        return everything, Selection.whole(cache, np.zeros(0, dtype=np.int64))
    stops = np.where(group == group[longest], length - held, everything.stops)
    tail = Selection(np.array([longest]), np.array([length - held]), np.array([length]))
    return Selection(everything.documents, everything.starts, stops), tail


def _mix(hashes: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of hash + seed: even over 0 to 2**64, another order for each seed."""
    x = hashes.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
