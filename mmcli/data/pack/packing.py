"""Packed rows: which pieces of which documents fill each row of T tokens, with as little padding as can be.

A row is made of (input, next token) pairs: a document of n tokens gives n - 1 of them, since its last token is only
predicted. Cut between pairs, a document loses nothing: the label of a piece's last token is the document's next one.

Rows are filled one after the other from a pool that holds a window of the shuffled documents: with the largest piece
that leaves no gap, by itself or with one other, else with the largest that fits (best fit, as in Ding et al. 2024,
"Fewer Truncations Improve Language Modeling"). With `split`, documents longer than a row give full rows first, and
where nothing fits, a document is cut to fill the row exactly, if possible into pieces of 16 pairs or more.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import numpy as np

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.selection import Selection
from mmcli.errors import UserError

WINDOW = 16_384  # documents in the pool
MIN_PIECE = 16  # pairs; with fewer, a piece has next to no context


class RowSet:
    """Rows of T pairs, all at once (`Rows`) or a shard of a large cache at a time.

    Attributes:
        seq_len: T.
        tokens: pairs in all rows, padding left out.
        dropped: documents left out, with less than one pair, or with nothing to train on before the cut.
        truncated: documents cut at T, and `truncated_tokens`, what they lost.
    """

    seq_len: int
    dropped: int
    truncated: int
    truncated_tokens: int

    @property
    def tokens(self) -> int:
        raise NotImplementedError

    @property
    def shard_rows(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each shard, in order: of each source one after the other, or one number where a row may have
        several sources."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(document, start, length) of each piece of a row."""
        raise NotImplementedError

    @property
    def utilisation(self) -> float:
        """Share of all places in rows that hold a pair, 0 to 1."""
        return self.tokens / (len(self) * self.seq_len) if len(self) else 0.0

    def describe(self) -> str:
        """One line for the person."""
        parts = [f"{len(self):,} rows of {self.seq_len:,} tokens, {self.utilisation:.2%} full"]
        if self.truncated:
            parts.append(f"{self.truncated:,} longer ones cut at their end ({self.truncated_tokens:,} tokens lost)")
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped with nothing to train on")
        return ", ".join(parts)


@dataclass(frozen=True)
class Rows(RowSet):
    """R rows of T pairs: row r is made of pieces `row_offsets[r]` to `row_offsets[r + 1]`.

    Attributes:
        piece_doc: [P] int64, the sequence of the cache.
        piece_start: [P] int64, its first input token; labels begin one later.
        piece_len: [P] int64, pairs.
        row_offsets: [R + 1] int64.
        by_source: rows of each source, one after the other; empty where a row may have several sources.
    """

    piece_doc: np.ndarray
    piece_start: np.ndarray
    piece_len: np.ndarray
    row_offsets: np.ndarray
    seq_len: int
    dropped: int = 0
    truncated: int = 0
    truncated_tokens: int = 0
    by_source: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.piece_len.sum())

    @property
    def shard_rows(self) -> tuple[tuple[int, ...], ...]:
        return (self.by_source or (len(self),),)

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        part = slice(int(self.row_offsets[row]), int(self.row_offsets[row + 1]))
        columns = (self.piece_doc[part], self.piece_start[part], self.piece_len[part])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def pack_cache(
    cache: TokenCache,
    seq_len: int,
    *,
    selection: Selection | None = None,
    split: bool | None = None,
    seed: int = 0,
    window: int = WINDOW,
) -> Rows:
    """Rows over a selection of a cache (all of it if None).

    Args:
        split: by default True for text, False for conversations (they are kept whole, the end of those longer than a
            row is cut off, and those with nothing left to train on are dropped). A row has either text or
            conversations, and one source alone where shares change over the training.

    Raises:
        UserError: nothing is left to train on.
    """
    rows = pack_selection(cache, seq_len, selection or Selection.whole(cache), split=split, seed=seed, window=window)
    if not len(rows):
        raise nothing_left(seq_len, rows.dropped)
    return rows


def nothing_left(seq_len: int, dropped: int) -> UserError:
    """The refusal of data that has no row."""
    return UserError(
        f"nothing is left to train on at seq-len {seq_len:,}: {dropped:,} documents dropped",
        "give a longer --seq-len, or other data",
    )


def pack_selection(
    cache: TokenCache,
    seq_len: int,
    selection: Selection,
    *,
    split: bool | None = None,
    seed: int = 0,
    window: int = WINDOW,
) -> Rows:
    """`pack_cache`, also where that gives no row."""
    is_split_N = cache.cuttable(selection.documents) if split is None else np.full(len(selection), split)
    of_source = [np.arange(len(selection))] if cache.course is None else selection.by_source(cache)
    parts: list[Rows] = []
    by_source: list[int] = []
    for inside in of_source:
        before = sum(len(part) for part in parts)
        is_inside_N = np.zeros(len(selection), dtype=bool)
        is_inside_N[inside] = True
        for split in (True, False):
            among_N = is_inside_N & (is_split_N == split)
            if among_N.any():
                keep = among_N if split else among_N & trainable(cache, selection, seq_len)
                part = pack_rows(np.where(keep, selection.lengths, 0), seq_len, split=split, seed=seed, window=window)
                parts.append(replace(part, dropped=part.dropped - int((~among_N).sum())))
        by_source.append(sum(len(part) for part in parts) - before)
    rows = _joined(parts, seq_len)
    return Rows(
        selection.documents[rows.piece_doc],
        selection.starts[rows.piece_doc] + rows.piece_start,
        rows.piece_len,
        rows.row_offsets,
        seq_len,
        rows.dropped,
        rows.truncated,
        rows.truncated_tokens,
        () if cache.course is None else tuple(by_source),
    )


def _joined(parts: list[Rows], seq_len: int) -> Rows:
    """The rows of one part after those of the other."""
    none = np.zeros(0, dtype=np.int64)
    before = np.cumsum([0, *(len(part.piece_doc) for part in parts)])
    ends = [part.row_offsets[1:] + pieces for part, pieces in zip(parts, before[:-1], strict=True)]
    return Rows(
        piece_doc=np.concatenate([none, *(part.piece_doc for part in parts)]),
        piece_start=np.concatenate([none, *(part.piece_start for part in parts)]),
        piece_len=np.concatenate([none, *(part.piece_len for part in parts)]),
        row_offsets=np.concatenate([np.zeros(1, dtype=np.int64), *ends]),
        seq_len=seq_len,
        dropped=sum(part.dropped for part in parts),
        truncated=sum(part.truncated for part in parts),
        truncated_tokens=sum(part.truncated_tokens for part in parts),
    )


def trainable(cache: TokenCache, selection: Selection, seq_len: int) -> np.ndarray:
    """[N] bool, the sequences that have a token to train on before they are cut at `seq_len`."""
    keep = np.ones(len(selection), dtype=bool)
    if cache.masked:
        for i in np.flatnonzero(selection.lengths > seq_len + 1).tolist():
            start = int(selection.starts[i])
            keep[i] = cache.trained(int(selection.documents[i]), start + 1, start + seq_len + 1).any()
    return keep


def pack_rows(lengths: np.ndarray, seq_len: int, *, split: bool, seed: int, window: int = WINDOW) -> Rows:
    """Rows of `seq_len` pairs over documents of `lengths` tokens ([N]); a length below 2 is dropped.

    The same arguments give the same rows. About 2 microseconds a document.

    Args:
        split: cut documents to fill rows exactly; else those longer than a row lose their end.
        seed: of the shuffle that decides which documents meet in a window.
    """
    if seq_len < 1 or window < 1:
        raise ValueError(f"seq_len = {seq_len} and window = {window} must be 1 or more")
    pairs = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
    used = np.flatnonzero(pairs > 0)
    truncated, lost = 0, 0
    if not split:
        over = pairs - seq_len
        truncated, lost = int((over > 0).sum()), int(over[over > 0].sum())
        pairs = np.minimum(pairs, seq_len)
    order = used[np.argsort(np.random.Philox(key=[seed % 2**64, 0]).random_raw(len(used)), kind="stable")]
    packer = _Packer(seq_len, min(MIN_PIECE, max(1, seq_len // 8)) if split else 0)
    for first in range(0, len(order), window):
        chunk = order[first : first + window]
        for document, count in zip(chunk.tolist(), pairs[chunk].tolist(), strict=True):
            packer.add(document, count)
        packer.fill_rows(at_least=max(1, window // 2))
    packer.fill_rows(at_least=0)
    docs, starts, lens, ends = (
        np.frombuffer(column, dtype=np.int64) for column in (packer.docs, packer.starts, packer.lens, packer.ends)
    )
    return Rows(docs, starts, lens, ends, seq_len, len(lengths) - len(used), truncated, lost)


class _Packer:
    """A pool of pieces by size, and the rows made of them so far.

    `_mask` has bit s set where a piece of s pairs is in the pool, so the best fit is one look at an integer's bits.
    `_mirror` is the mask read backwards (bit T - s): laid over it, it shows the sizes that go with another to a sum.
    """

    def __init__(self, seq_len: int, min_piece: int) -> None:
        self._seq_len = seq_len
        self._min = min_piece  # 0: never cut
        self._pool: list[list[tuple[int, int]]] = [[] for _ in range(seq_len + 1)]  # (document, start) by size
        self._mask = 0
        self._mirror = 0
        self._count = 0
        self._pairs = 0
        self._within = [(1 << (size + 1)) - 1 for size in range(seq_len + 1)] if seq_len <= 4096 else None
        # Eight bytes a number; in a list each would be an object of its own.
        self.docs, self.starts, self.lens, self.ends = (array("q", first) for first in ((), (), (), (0,)))

    def add(self, document: int, pairs: int) -> None:
        """Put a document into the pool; what is longer than a row gives full rows at once."""
        start = 0
        while pairs > self._seq_len:
            rest = pairs - self._seq_len
            if 0 < rest < self._min:  # leave enough for a piece of its own
                self._put(document, start, self._seq_len + rest - self._min)
                start, pairs = start + self._seq_len + rest - self._min, self._min
                break
            self._place(document, start, self._seq_len)
            self.ends.append(len(self.docs))
            start, pairs = start + self._seq_len, rest
        self._put(document, start, pairs)

    def fill_rows(self, at_least: int) -> None:
        """Make rows while more than `at_least` pieces are in the pool; 0: until it is empty.

        Before the end, a row is begun only where the pool can fill it.
        """
        while self._count > at_least and (self._pairs >= self._seq_len or not at_least):
            room = self._seq_len
            while room and self._mask:
                taken = self._best(room)
                if not taken:
                    break
                room -= taken
            self.ends.append(len(self.docs))

    def _best(self, room: int) -> int:
        """Place one piece into a row with `room` left; its size, 0 if the row stays as it is.

        An exact fit; else the first of two that fit exactly together; else the largest that leaves room for another
        piece; else a cut; else the largest that fits.
        """
        mask = self._mask
        if mask >> room & 1:
            return self._take(room)
        if both := mask & (self._mirror >> (self._seq_len - room)):
            size = both.bit_length() - 1
            if 2 * size != room or len(self._pool[size]) > 1:
                return self._take(size)
        if size := self._largest(room - self._min):
            return self._take(size)
        if not self._min:
            return 0
        longest = mask.bit_length() - 1
        if longest >= room + self._min and room >= self._min:
            return self._cut(longest, room)
        if size := self._largest(room):
            return self._take(size)
        return self._cut(longest, room)

    def _largest(self, limit: int) -> int:
        """The largest size in the pool up to `limit`, 0 if there is none."""
        if limit < 1:
            return 0
        within = self._within[limit] if self._within is not None else (1 << (limit + 1)) - 1
        size = (self._mask & within).bit_length() - 1
        return max(size, 0)

    def _take(self, size: int) -> int:
        document, start = self._pop(size)
        self._place(document, start, size)
        return size

    def _cut(self, size: int, room: int) -> int:
        """Place the first `room` pairs of a longer piece; the rest goes back."""
        document, start = self._pop(size)
        self._place(document, start, room)
        self._put(document, start + room, size - room)
        return room

    def _place(self, document: int, start: int, size: int) -> None:
        self.docs.append(document)
        self.starts.append(start)
        self.lens.append(size)

    def _put(self, document: int, start: int, size: int) -> None:
        self._pool[size].append((document, start))
        self._mask |= 1 << size
        self._mirror |= 1 << (self._seq_len - size)
        self._count += 1
        self._pairs += size

    def _pop(self, size: int) -> tuple[int, int]:
        stack = self._pool[size]
        item = stack.pop()
        if not stack:
            self._mask ^= 1 << size
            self._mirror ^= 1 << (self._seq_len - size)
        self._count -= 1
        self._pairs -= size
        return item
