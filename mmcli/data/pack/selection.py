"""Which part of a token cache is used: its training or held-out part, each source's share of a mixture.

The weights of `--data a.jsonl:0.7 --data b.parquet:0.3` are shares of the tokens of an epoch. No source is repeated: an
epoch has all of the source that is scarcest for its share, and of the others as many tokens as their shares then allow.
A share that changes over the training counts with its mean; `course.py` orders the rows.
Which records those are, a hash of their content and the seed decides. See docs/decisions/005-mixtures.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.hub import COMMIT
from mmcli.data.sources.sources import describe_change
from mmcli.errors import UserError

SHARD = 2**20  # documents; a cache of more is used a part at a time (see `shards.py`)
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
        return cls(which, np.zeros(len(which), dtype=np.int64), cache.lengths_of(which))

    def source_tokens(self, cache: TokenCache) -> list[int]:
        """Tokens of each source of the cache in this selection."""
        return [int(self.lengths[inside].sum()) for inside in self.by_source(cache)]

    def by_source(self, cache: TokenCache) -> list[np.ndarray]:
        """For each source, where in this selection its spans are."""
        source_N = np.searchsorted(np.cumsum(cache.sequences_by_source), self.documents, side="right")
        return [np.flatnonzero(source_N == source) for source in range(len(cache.sequences_by_source))]

    def mixed(self, cache: TokenCache, seed: int = 0) -> Selection:
        """The part of this that an epoch uses: of each source its share of the tokens; all of it without weights.

        Plain text is cut to exactly the shares; conversations and pairs are taken whole, as near as they come.

        Raises:
            UserError: a source has a weight and no token in this selection.
        """
        if cache.mixture is None:
            return self
        each = cache.sequences_per_record
        stops = self.stops.copy()
        targets = token_targets(self.source_tokens(cache), cache.mixture)
        for inside, target in zip(self.by_source(cache), targets, strict=True):
            cut = bool(cache.cuttable(self.documents[inside]).all())
            lengths_R = self.lengths[inside].reshape(-1, each).sum(axis=1)
            hashes_R = scatter(np.asarray(cache.hashes)[self.documents[inside[::each]]], seed)
            taken_R = take_tokens(lengths_R, hashes_R, target, cut=cut)
            in_source = self.starts[inside] + np.repeat(taken_R * cut, each)  # what is not cut is taken whole or not
            stops[inside] = np.where(np.repeat(taken_R == lengths_R, each), stops[inside], in_source)
        kept = np.flatnonzero(stops > self.starts)
        return Selection(self.documents[kept], self.starts[kept], stops[kept])

    def describe_mixture(self, cache: TokenCache) -> str | None:
        """One line for the person: how much this has of each source; None where there are no weights."""
        if cache.mixture is None:
            return None
        names = [name for name, _ in cache.mixture]
        tokens = Selection.whole(cache).source_tokens(cache)
        return describe_mixture(names, self.source_tokens(cache), tokens, cache.course)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each span."""
        return self.stops - self.starts

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def shard_count(cache: TokenCache) -> int:
    """Shards of a cache: 1 for a small one, and for one of pairs."""
    return shards_of(len(cache)) if cache.sequences_per_record == 1 else 1


def shards_of(documents: int) -> int:
    """Shards of a cache of so many documents."""
    return max(1, -(-documents // SHARD))


def split_documents(
    cache: TokenCache,
    fraction: float,
    seed: int,
    *,
    max_tokens: int = MAX_HELD_OUT,
    usable_R: np.ndarray | None = None,
) -> tuple[Selection, Selection]:
    """(training part, held-out part).

    The held-out part is one of all the data; where the sources have weights, the training part is the rest as they say.

    A record is held out when a hash of its content and the seed falls below `fraction`: duplicates fall on the same
    side, and a record keeps its side when others are added. At least one record is held out, and no more than
    `max_tokens` tokens, whole records. Where texts are few (fewer than eight different ones) the end of the longest
    is held out instead; few conversations are never cut: with one alone, nothing is held out, and neither is where a
    source with a weight would have no other.

    Args:
        fraction: share of the records, 0 (nothing is held out) to below 1.
        usable_R: [R] bool, records that can be evaluated and trained on; others are never held out. None: all.
    """
    everything = Selection.whole(cache)
    nothing = Selection.whole(cache, np.zeros(0, dtype=np.int64))
    if fraction <= 0:
        return everything.mixed(cache, seed), nothing
    hashes = scatter(np.asarray(cache.hashes[:: cache.sequences_per_record]), seed)  # [R] of the records
    distinct, group = np.unique(hashes, return_inverse=True)  # ascending; group[r]: where record r's hash is in it
    if len(distinct) < FEW and cache.cuttable(everything.documents).all():
        kept, held_out = _split_tail(cache, everything, group, fraction, max_tokens)
        return _mixed_or_all(cache, seed, kept, held_out)
    usable = np.arange(len(distinct)) if usable_R is None else np.unique(group[usable_R])
    if len(usable) < 2:
        return everything.mixed(cache, seed), nothing
    lengths = np.asarray(cache.lengths).reshape(-1, cache.sequences_per_record).sum(axis=1)
    size = np.bincount(group, weights=lengths).astype(np.int64)[usable]  # tokens of each with its duplicates
    below = int((distinct[usable] < np.uint64(fraction * 2.0**64)).sum())
    fitting = int((np.cumsum(size) <= max_tokens).sum())
    count = min(max(1, min(below, fitting)), len(usable) - 1)
    is_held = np.zeros(len(distinct), dtype=bool)
    is_held[usable[:count]] = True
    held = np.repeat(is_held[group], cache.sequences_per_record)
    where = np.arange(len(cache), dtype=np.int64)
    return _mixed_or_all(cache, seed, Selection.whole(cache, where[~held]), Selection.whole(cache, where[held]))


def _mixed_or_all(cache: TokenCache, seed: int, kept: Selection, held_out: Selection) -> tuple[Selection, Selection]:
    """Both parts, the first as the weights say; all and nothing where the second took all that a source has."""
    if cache.mixture is not None and not all(kept.source_tokens(cache)):
        return Selection.whole(cache).mixed(cache, seed), Selection.whole(cache, np.zeros(0, dtype=np.int64))
    return kept.mixed(cache, seed), held_out


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


# Mixtures


def token_targets(tokens: Sequence[int], mixture: Sequence[tuple[str, float]]) -> list[int]:
    """Tokens that an epoch takes of each source, which has `tokens` of them.

    Args:
        mixture: (name, share) of each source.

    Raises:
        UserError: a source has no token.
    """
    for count, (name, share) in zip(tokens, mixture, strict=True):
        if not count:
            raise UserError(f"{name} has a share of {share:.1%}, but no token to train on", "leave it out of --data")
    epoch = min(count / share for count, (_, share) in zip(tokens, mixture, strict=True))
    return [min(count, round(epoch * share)) for count, (_, share) in zip(tokens, mixture, strict=True)]


def describe_mixture(
    names: Sequence[str],
    taken: Sequence[int],
    tokens: Sequence[int],
    course: Sequence[tuple[float, float]] | None = None,
) -> str:
    """One line for the person: how much of each source an epoch uses, its actual share, and how that changes over the
    training; commits are shortened."""
    short = (COMMIT.sub(lambda commit: commit[0][:7], name) for name in names)
    changes = course or [(0.0, 0.0)] * len(names)
    each = (
        f"{name} {used:,} of {count:,} tokens ({used / max(1, sum(taken)):.1%}{describe_change(change)})"
        for name, used, count, change in zip(short, taken, tokens, changes, strict=True)
    )
    return "tokens per epoch: " + ", ".join(each)


def take_tokens(lengths_N: np.ndarray, hashes_N: np.ndarray, target: int, *, cut: bool) -> np.ndarray:
    """[N] tokens to take of each of N records, `target` in all, in the order of their hashes.

    Args:
        cut: the last record may be taken in part (its beginning); else whole records come as near as they can, and
            there is at least one.
    """
    order = np.argsort(hashes_N, kind="stable")
    ends = np.cumsum(lengths_N[order])
    taken = np.zeros(len(lengths_N), dtype=np.int64)
    if cut:
        starts = ends - lengths_N[order]
        taken[order] = np.clip(target - starts, 0, lengths_N[order])
        return taken
    count = int(np.searchsorted(ends, target, side="right"))  # so many records do not go beyond the target
    before = int(ends[count - 1]) if count else 0
    if count < len(order) and (not count or int(ends[count]) - target < target - before):
        count += 1
    taken[order[:count]] = lengths_N[order[:count]]
    return taken


def scatter(hashes: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of hash + seed: even over 0 to 2**64, another order for each seed."""
    x = hashes.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
