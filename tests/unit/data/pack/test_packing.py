from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.packing import MIN_PIECE, Rows, pack_cache, pack_rows
from mmcli.data.pack.selection import Selection
from mmcli.errors import UserError

Draw = Callable[[np.random.Generator, int], np.ndarray]
LENGTHS: dict[str, Draw] = {
    "stories": lambda rng, n: np.maximum(rng.lognormal(5.3, 0.8, n), 0).astype(np.int64),
    "names": lambda rng, n: rng.integers(0, 9, n),
    "long": lambda rng, n: rng.integers(1, 5000, n // 9 + 1),
    "equal": lambda rng, n: np.full(n, 301),
    "exact": lambda rng, n: rng.choice([65, 129, 257, 513], n),
}


def covered(rows: Rows) -> dict[int, list[tuple[int, int]]]:
    """The pieces of each document, in order."""
    pieces: dict[int, list[tuple[int, int]]] = {}
    for document, start, length in zip(
        rows.piece_doc.tolist(), rows.piece_start.tolist(), rows.piece_len.tolist(), strict=True
    ):
        pieces.setdefault(document, []).append((start, length))
    return {document: sorted(parts) for document, parts in pieces.items()}


def check_shape(rows: Rows, seq_len: int) -> None:
    totals = np.add.reduceat(rows.piece_len, rows.row_offsets[:-1]) if len(rows) else np.zeros(0)
    assert (rows.piece_len > 0).all()
    assert (totals <= seq_len).all()
    assert (np.diff(rows.row_offsets) > 0).all()
    assert rows.row_offsets[-1] == len(rows.piece_doc)


@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("seq_len", [1, 7, 64, 512])
def test_split_covers_every_pair_once_and_fills_the_rows(shape: str, seq_len: int) -> None:
    for trial in range(6):
        rng = np.random.default_rng(trial)
        lengths = LENGTHS[shape](rng, int(rng.integers(1, 900)))
        rows = pack_rows(lengths, seq_len, split=True, seed=trial, window=int(rng.choice([1, 10, 1000])))
        check_shape(rows, seq_len)
        pieces = covered(rows)
        for document, length in enumerate(lengths.tolist()):
            at = 0
            for start, count in pieces.get(document, []):
                assert start == at
                at += count
            assert at == max(0, length - 1)
        assert rows.dropped == int((lengths < 2).sum())
        pairs = int(np.maximum(lengths - 1, 0).sum())
        assert rows.tokens == pairs
        assert len(rows) == -(-pairs // seq_len)  # every row but the last is full: no packing has fewer


@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("seq_len", [7, 64, 512])
def test_without_split_documents_stay_whole_or_lose_their_end(shape: str, seq_len: int) -> None:
    for trial in range(6):
        rng = np.random.default_rng(trial)
        lengths = LENGTHS[shape](rng, int(rng.integers(1, 900)))
        rows = pack_rows(lengths, seq_len, split=False, seed=trial, window=int(rng.choice([1, 10, 1000])))
        check_shape(rows, seq_len)
        kept = np.clip(lengths - 1, 0, seq_len)
        assert covered(rows) == {i: [(0, n)] for i, n in enumerate(kept.tolist()) if n}
        assert rows.truncated == int((lengths - 1 > seq_len).sum())
        assert rows.truncated_tokens == int(np.maximum(lengths - 1 - seq_len, 0).sum())


def test_utilisation_of_texts_and_conversations() -> None:
    rng = np.random.default_rng(0)
    for shape in ("stories", "names"):
        lengths = LENGTHS[shape](rng, 200_000)
        rows = pack_rows(lengths, 512, split=True, seed=0)
        assert rows.utilisation >= 0.999
        assert rows.utilisation == rows.tokens / (len(rows) * 512)
    assert pack_rows(LENGTHS["stories"](rng, 50_000), 512, split=False, seed=0).utilisation > 0.99


def test_few_documents_are_cut_and_rarely_into_scraps() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, 0.7, 50_000), 40, 400).astype(np.int64)
    rows = pack_rows(lengths, 512, split=True, seed=0)
    assert len(rows.piece_len) - len(lengths) < 0.02 * len(lengths)  # chopping a stream cuts one document a row: 18 %
    assert (rows.piece_len < MIN_PIECE).sum() < 0.001 * len(lengths)


def test_same_seed_same_rows_other_seed_others() -> None:
    lengths = LENGTHS["stories"](np.random.default_rng(0), 3000)
    first, again, other = (pack_rows(lengths, 512, split=True, seed=seed) for seed in (1, 1, 2))
    for name in ("piece_doc", "piece_start", "piece_len", "row_offsets"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.piece_doc, other.piece_doc)


def test_documents_meet_only_within_a_window() -> None:
    lengths = np.full(1000, 11)
    rows = pack_rows(lengths, 100, split=True, seed=3, window=10)
    order = {document: place for place, document in enumerate(dict.fromkeys(rows.piece_doc.tolist()))}
    spread = [
        max(order[d] for d, _, _ in rows.pieces(r)) - min(order[d] for d, _, _ in rows.pieces(r))
        for r in range(len(rows))
    ]
    assert max(spread) < 40


def test_a_million_documents_take_seconds() -> None:
    lengths = np.maximum(3, np.random.default_rng(0).lognormal(5.5, 1, 250_000)).astype(np.int64)
    start = time.process_time()
    pack_rows(lengths, 512, split=True, seed=0)
    assert time.process_time() - start < 4  # a quarter of a million; about 0.5 s here


def test_pieces_and_description() -> None:
    rows = pack_rows(np.array([11, 1]), 4, split=True, seed=0)
    assert [rows.pieces(r) for r in range(3)] == [[(0, 0, 4)], [(0, 4, 4)], [(0, 8, 2)]]
    assert rows.describe() == "3 rows of 4 tokens, 83.33% full, 1 dropped with nothing to train on"
    rows = pack_rows(np.array([11, 4]), 4, split=False, seed=0)
    assert rows.describe() == "2 rows of 4 tokens, 87.50% full, 1 longer ones cut at their end (6 tokens lost)"


def test_selection_maps_to_the_documents_of_the_cache(text_cache: Callable[[list[str]], TokenCache]) -> None:
    cache = text_cache(["fox " * 30, "dog " * 20, "owl " * 10])
    selection = Selection(np.array([2, 0]), np.array([0, 5]), np.array([int(cache.lengths[2]), 25]))
    rows = pack_cache(cache, 8, selection=selection)
    pieces = covered(rows)
    assert set(pieces) == {0, 2}
    assert pieces[0][0][0] == 5
    assert sum(length for _, length in pieces[0]) == 19
    assert sum(length for _, length in pieces[2]) == cache.lengths[2] - 1


def test_conversations_with_nothing_to_train_on_before_the_cut_are_dropped(
    chat_cache: Callable[[list[tuple[str, str]]], TokenCache],
) -> None:
    cache = chat_cache([("short", "answer " * 40), ("long question " * 40, "answer"), ("short", "answer")])
    rows = pack_cache(cache, 40)
    assert sorted(covered(rows)) == [0, 2]
    assert (rows.dropped, rows.truncated) == (1, 1)
    untrained = Selection.whole(cache, np.array([1]))
    with pytest.raises(UserError, match="nothing is left to train on at seq-len 40"):
        pack_cache(cache, 40, selection=untrained)
    assert len(pack_cache(cache, 600, selection=untrained)) == 1


def test_wrong_sizes_are_refused() -> None:
    for seq_len, window in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            pack_rows(np.array([3]), seq_len, split=True, seed=0, window=window)
