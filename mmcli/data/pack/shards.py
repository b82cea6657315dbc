"""Large caches in shards, so that memory does not grow with the number of documents.

A cache of more than `selection.SHARD` documents is used in shards: every S-th block of neighbours, so that each is a
sample of the whole. What is held out and what a mixture takes are told by bounds on hashes, which a few passes find; a
shard is selected and packed when one of its rows is needed, and forgotten later. The number of its rows stays known,
and is kept beside the cache (`counts.py`).

A smaller cache is one shard, for which `selection.py` and `packing.py` do everything at once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.counts import ShardCounts, count_shards
from mmcli.data.pack.packing import Rows, RowSet, nothing_left, pack_selection, trainable
from mmcli.data.pack.selection import Selection, describe_mixture, scatter, token_targets
from mmcli.errors import MmcliError
from mmcli.stage import Reporter

BLOCK = 2**10  # neighbours that stay together
CHUNK = 2**18  # documents that a pass looks at together
PREFIX = 16  # bits of a hash that a pass of a mixture decides
HELD = 2  # shards that stay packed, for each source that is read by itself


def shard_documents(cache: TokenCache, shard: int, shards: int) -> np.ndarray:
    """[N] the documents of a shard, ascending."""
    starts_B = np.arange(shard * BLOCK, len(cache), shards * BLOCK, dtype=np.int64)
    found = (starts_B[:, None] + np.arange(BLOCK, dtype=np.int64)).ravel()
    return found[found < len(cache)]


@dataclass(frozen=True)
class Choice:
    """Which documents are trained on, by their hashes.

    Attributes:
        seed: of `scatter`.
        held_out: [H] uint64, ascending, the scattered hashes of the documents that are held out.
        bounds: of each source, the scattered hash from which on its documents are left out; None: none are.
    """

    seed: int
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    bounds: tuple[int | None, ...] = ()

    def describe(self) -> list[object]:
        """All that this says, as JSON values: of the hashes their digest."""
        return [self.seed, hashlib.sha256(self.held_out.tobytes()).hexdigest(), list(self.bounds)]

    def take(self, cache: TokenCache, documents_N: np.ndarray) -> tuple[Selection, np.ndarray]:
        """Those of some documents that are trained on, and their scattered hashes."""
        hashes_N = scatter(np.asarray(cache.hashes[documents_N]), self.seed)
        keep_N = ~np.isin(hashes_N, self.held_out)
        source_N = np.searchsorted(np.cumsum(cache.sequences_by_source), documents_N, side="right")
        for source, bound in enumerate(self.bounds):
            if bound is not None:
                keep_N &= (source_N != source) | (hashes_N < np.uint64(bound))
        return Selection.whole(cache, documents_N[keep_N]), hashes_N[keep_N]


def choose_documents(
    cache: TokenCache, fraction: float, seed: int, *, max_tokens: int, seq_len: int
) -> tuple[Choice, Selection]:
    """(what is trained on, what is held out) of a large cache, by the rules of `split_documents` and `Selection.mixed`.

    Of a mixture whole documents are taken, as near to the shares as 32 bits of their hashes tell.

    Args:
        fraction: share of the documents that is held out; 0: nothing.

    Raises:
        UserError: a source has a weight and no token.
    """
    hashes, held = _hold_out(cache, fraction, seed, max_tokens, seq_len)
    choice = Choice(seed, hashes)
    if cache.mixture is None:
        return choice, held
    ends = np.cumsum([0, *cache.sequences_by_source])
    whole = [cache.tokens_between(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    tokens = [count - out for count, out in zip(whole, held.source_tokens(cache), strict=True)]
    if not all(tokens):
        choice, held, tokens = Choice(seed), Selection.whole(cache, np.zeros(0, dtype=np.int64)), whole
    targets = token_targets(tokens, cache.mixture)
    bounds = [
        None if target >= count else _bound(cache, choice, range(int(ends[source]), int(ends[source + 1])), target)
        for source, (target, count) in enumerate(zip(targets, tokens, strict=True))
    ]
    return replace(choice, bounds=tuple(bounds)), held


def _chunks(documents: range) -> Iterator[np.ndarray]:
    for first in range(documents.start, documents.stop, CHUNK):
        yield np.arange(first, min(first + CHUNK, documents.stop), dtype=np.int64)


def _hold_out(
    cache: TokenCache, fraction: float, seed: int, max_tokens: int, seq_len: int
) -> tuple[np.ndarray, Selection]:
    """The hashes of the documents that are held out, and these: those with the smallest hashes, duplicates included.

    One pass; what may still be held out has little more than `max_tokens` tokens.
    """
    highest = limit = 2**64 - 1
    found, hashes, tokens = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    for documents in _chunks(range(len(cache))) if fraction > 0 else ():
        scattered = scatter(np.asarray(cache.hashes[documents]), seed)
        near = Selection.whole(cache, documents[scattered <= np.uint64(limit)])
        near = Selection.whole(cache, near.documents[trainable(cache, near, seq_len)])
        found = np.concatenate([found, near.documents])
        hashes = np.concatenate([hashes, scattered[near.documents - documents[0]]])
        tokens = np.concatenate([tokens, near.lengths])
        order = np.argsort(hashes, kind="stable")
        found, hashes, tokens = found[order], hashes[order], tokens[order]
        beyond = np.flatnonzero(np.cumsum(tokens) > max_tokens)
        if len(beyond):
            limit = int(hashes[beyond[0]])
            inside = hashes <= np.uint64(limit)  # equal documents go together
            found, hashes, tokens = found[inside], hashes[inside], tokens[inside]
    distinct, group = np.unique(hashes, return_inverse=True)
    size = np.bincount(group, weights=tokens, minlength=len(distinct))
    below = int((distinct < np.uint64(fraction * 2.0**64)).sum())
    fitting = int((np.cumsum(size) <= max_tokens).sum())
    others = len(distinct) - (limit == highest)  # something is left to train on
    held = distinct[: min(max(1, min(below, fitting)), max(0, others))]
    return held, Selection.whole(cache, np.sort(found[np.isin(hashes, held)]))


def _bound(cache: TokenCache, choice: Choice, documents: range, target: int) -> int:
    """The hash below which some documents have nearest to `target` tokens: two passes of 16 bits each."""
    prefix, before = 0, 0.0  # the bits that are decided, and the tokens below them
    for shift in (64 - PREFIX, 64 - 2 * PREFIX):
        tokens_B = np.zeros(2**PREFIX)
        for chunk in _chunks(documents):
            taken, hashes = choice.take(cache, chunk)
            bins = hashes >> np.uint64(shift)
            among = (bins >> np.uint64(PREFIX)) == np.uint64(prefix)
            bins = (bins[among] & np.uint64(2**PREFIX - 1)).astype(np.int64)
            tokens_B += np.bincount(bins, weights=taken.lengths[among], minlength=2**PREFIX)
        sums_B = before + np.cumsum(tokens_B)
        place = int(np.searchsorted(sums_B, target))
        before = float(sums_B[place - 1]) if place else before
        prefix = (prefix << PREFIX) + place
    nearer = target - before > float(sums_B[place]) - target
    return min((prefix + nearer) << (64 - 2 * PREFIX), 2**64 - 1)


class ShardedRows(RowSet):
    """The rows of a large cache; a shard is packed when one of its rows is needed.

    Attributes:
        source_tokens: tokens of each source that are trained on.
    """

    def __init__(
        self, cache: TokenCache, choice: Choice, seq_len: int, *, seed: int, shards: int, report: Reporter
    ) -> None:
        """Pack every shard once to know its rows, some microseconds a document; what is kept of that is taken.

        Raises:
            UserError: nothing is left to train on.
        """
        self._cache, self._choice, self._seed, self._shards = cache, choice, seed, shards
        self.seq_len = seq_len
        self._packed = lru_cache(maxsize=HELD * max(1, len(cache.course or ())))(self._pack)
        rules = [seq_len, seed, *choice.describe(), cache.course is not None]
        found, self._kept_in = count_shards(
            cache.folder, rules, shards, self._count, lambda done: report.progress("pack", done, shards, "shards")
        )
        self._counts = tuple(each.rows for each in found)
        self._tokens = sum(each.tokens for each in found)
        self.dropped = sum(each.dropped for each in found)
        self.truncated = sum(each.truncated for each in found)
        self.truncated_tokens = sum(each.truncated_tokens for each in found)
        self.source_tokens = [sum(each) for each in zip(*(each.source_tokens for each in found), strict=True)]
        self._firsts = np.cumsum([0, *map(sum, self._counts)])
        if not len(self):
            raise nothing_left(seq_len, self.dropped)

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def shard_rows(self) -> tuple[tuple[int, ...], ...]:
        return self._counts

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def _select(self, shard: int) -> Selection:
        return self._choice.take(self._cache, shard_documents(self._cache, shard, self._shards))[0]

    def _pack(self, shard: int) -> Rows:
        return pack_selection(self._cache, self.seq_len, self._select(shard), seed=self._seed)

    def _count(self, shard: int) -> ShardCounts:
        rows, sources = self._packed(shard), self._select(shard).source_tokens(self._cache)
        lost = (rows.dropped, rows.truncated, rows.truncated_tokens)
        return ShardCounts(rows.shard_rows[0], tuple(sources), rows.tokens, *lost)

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        shard = int(np.searchsorted(self._firsts, row, side="right")) - 1
        rows = self._packed(shard)
        if rows.shard_rows[0] != self._counts[shard]:
            what = f"{self._kept_in} does not count the rows that its token cache has: shard {shard}"
            raise MmcliError(what, f"delete {self._kept_in}; the rows are counted again")
        return rows.pieces(row - int(self._firsts[shard]))

    def describe_mixture(self) -> str | None:
        """One line for the person: how much this has of each source; None where there are no weights."""
        cache = self._cache
        if cache.mixture is None:
            return None
        ends = np.cumsum([0, *cache.sequences_by_source])
        whole = [cache.tokens_between(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        return describe_mixture([name for name, _ in cache.mixture], self.source_tokens, whole, cache.course)
