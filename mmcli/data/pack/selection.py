"""Which part of a token cache is used: all of it, or its training or held-out part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.mixture import describe_mixture, scatter, take_tokens, token_targets

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

    def part_tokens(self, cache: TokenCache) -> list[int]:
        """Tokens of each part of the cache's sources in this selection."""
        return [int(self.lengths[inside].sum()) for inside in self._parts(cache)]

    def _parts(self, cache: TokenCache) -> list[np.ndarray]:
        """For each part of the sources, where in this selection its spans are."""
        part_N = np.searchsorted(np.cumsum(cache.parts), self.documents, side="right")
        return [np.flatnonzero(part_N == part) for part in range(len(cache.parts))]

    def mixed(self, cache: TokenCache, seed: int = 0) -> Selection:
        """What an epoch has of this where the sources have weights: each its share of the tokens; else all of it.

        Plain text is cut to the very shares; conversations and pairs are taken whole, as near as they come.

        Raises:
            UserError: a part of the sources has a weight and no token in this selection.
        """
        if cache.mixture is None:
            return self
        each = cache.sequences_per_record
        cut = not cache.masked and each == 1
        stops = self.stops.copy()
        targets = token_targets(self.part_tokens(cache), cache.mixture)
        for inside, target in zip(self._parts(cache), targets, strict=True):
            lengths_R = self.lengths[inside].reshape(-1, each).sum(axis=1)
            hashes_R = scatter(np.asarray(cache.hashes)[self.documents[inside[::each]]], seed)
            taken_R = take_tokens(lengths_R, hashes_R, target, cut=cut)
            in_part = self.starts[inside] + np.repeat(taken_R * cut, each)  # what is not cut is taken whole or not
            stops[inside] = np.where(np.repeat(taken_R == lengths_R, each), stops[inside], in_part)
        kept = np.flatnonzero(stops > self.starts)
        return Selection(self.documents[kept], self.starts[kept], stops[kept])

    def describe_mixture(self, cache: TokenCache) -> str | None:
        """One line for the person: how much this has of each part of the sources; None where there are no weights."""
        if cache.mixture is None:
            return None
        names = [name for name, _ in cache.mixture]
        return describe_mixture(names, self.part_tokens(cache), Selection.whole(cache).part_tokens(cache))

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

    The held-out part is one of all the data; where the sources have weights, the training part is the rest as they say.

    A record is held out when a hash of its content and the seed falls below `fraction`: duplicates fall on the same
    side, and a record keeps its side when others are added. At least one record is held out, and no more than
    `max_tokens` tokens, whole records. Where texts are few (fewer than eight different ones) the end of the longest
    is held out instead; few conversations are never cut: with one alone, nothing is held out.

    Args:
        fraction: share of the records, 0 (nothing is held out) to below 1.
    """
    everything = Selection.whole(cache)
    if fraction <= 0:
        return everything.mixed(cache, seed), Selection.whole(cache, np.zeros(0, dtype=np.int64))
    hashes = scatter(np.asarray(cache.hashes[:: cache.sequences_per_record]), seed)  # [R] of the records
    distinct, group = np.unique(hashes, return_inverse=True)  # ascending; group[r]: where record r's hash is in it
    cuttable = not cache.masked and cache.sequences_per_record == 1
    if cuttable and len(distinct) < FEW:
        kept, held_out = _split_tail(cache, everything, group, fraction, max_tokens)
        return kept.mixed(cache, seed), held_out
    if len(distinct) < 2:
        return everything.mixed(cache, seed), Selection.whole(cache, np.zeros(0, dtype=np.int64))
    lengths = np.asarray(cache.lengths).reshape(-1, cache.sequences_per_record).sum(axis=1)
    size = np.bincount(group, weights=lengths).astype(np.int64)  # tokens of each distinct record and its duplicates
    below = int((distinct < np.uint64(fraction * 2.0**64)).sum())
    fitting = int((np.cumsum(size) <= max_tokens).sum())
    count = min(max(1, min(below, fitting)), len(distinct) - 1)
    held = np.repeat(group < count, cache.sequences_per_record)
    where = np.arange(len(cache), dtype=np.int64)
    return Selection.whole(cache, where[~held]).mixed(cache, seed), Selection.whole(cache, where[held])


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
