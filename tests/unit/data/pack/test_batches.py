from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.batches import Batch, Batches, evaluation_batches, make_batch
from mmcli.data.pack.packing import Rows, pack_cache
from mmcli.errors import UserError

TextCache = Callable[[list[str]], TokenCache]
TEXTS = [f"story {number}: " + "the quick brown fox " * (number % 7) for number in range(120)]
FIELDS = ("ids_BT", "labels_BT", "positions_BT", "segments_BT")


@pytest.fixture
def packed(text_cache: TextCache) -> tuple[TokenCache, Rows]:
    cache = text_cache(TEXTS)
    return cache, pack_cache(cache, 32, seed=1)


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def test_rows_hold_their_pieces_and_labels_are_the_next_tokens(packed: tuple[TokenCache, Rows]) -> None:
    cache, rows = packed
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in evaluation_batches(cache, rows, 5):
        assert all(getattr(batch, name).dtype == np.int64 for name in FIELDS)
        assert batch.ids_BT.shape == (batch.rows, 32)
        real = batch.segments_BT >= 0
        assert (batch.ids_BT[~real] == cache.pad_id).all()
        assert (batch.labels_BT[~real] == -100).all()
        assert (batch.positions_BT[~real] == 0).all()
        assert batch.tokens == batch.targets == int(real.sum())
        pairs.update(zip(batch.ids_BT[real].tolist(), batch.labels_BT[real].tolist(), strict=True))
        inside = (batch.segments_BT[:, 1:] == batch.segments_BT[:, :-1]) & real[:, 1:]
        assert (batch.labels_BT[:, :-1][inside] == batch.ids_BT[:, 1:][inside]).all()
        assert (batch.positions_BT[:, 1:][inside] == batch.positions_BT[:, :-1][inside] + 1).all()
        begins = np.concatenate([real[:, :1], ~inside & real[:, 1:]], axis=1)
        assert (batch.positions_BT[begins] == 0).all()
        assert (np.diff(np.where(real, batch.segments_BT, 10**6), axis=1) >= 0).all()
    expected: Counter[tuple[int, int]] = Counter()
    for i in range(len(cache)):
        ids = cache.ids(i).tolist()
        expected.update(pairwise(ids))
    assert pairs == expected


def test_only_replies_are_targets(chat_cache: Callable[[list[tuple[str, str]]], TokenCache]) -> None:
    cache = chat_cache([("the question", "an answer"), ("another", "word " * 30)])
    rows = pack_cache(cache, 24)
    (batch,) = evaluation_batches(cache, rows, 8)
    for b in range(batch.rows):
        for segment, (document, start, length) in enumerate(rows.pieces(b)):
            place = batch.segments_BT[b] == segment
            trained = cache.trained(document, start + 1, start + length + 1).astype(bool)
            labels = cache.ids(document, start + 1, start + length + 1).astype(np.int64)
            assert np.array_equal(batch.labels_BT[b, place], np.where(trained, labels, -100))
    assert 0 < batch.targets < batch.tokens


def make(packed: tuple[TokenCache, Rows], **more: int) -> Batches:
    sizes = {"batch_size": 6, "micro_batch": 4, "seed": 1, **more}
    return Batches(packed[0], packed[1], **sizes)


def test_every_row_once_an_epoch(packed: tuple[TokenCache, Rows]) -> None:
    batches, count = make(packed), len(packed[1])
    assert batches.steps_per_epoch == count / 6
    seen = np.concatenate([batches.row_numbers(step) for step in range(count)])  # six epochs
    orders = seen.reshape(6, count)
    for order in orders:
        assert sorted(order) == list(range(count))
    assert len({tuple(order) for order in orders.tolist()}) == 6


def test_a_step_is_a_function_of_seed_and_number(packed: tuple[TokenCache, Rows]) -> None:
    straight, jumped = make(packed), make(packed)
    wanted = [straight.micro_batches(step) for step in range(20)]
    for step in (19, 3, 11):
        assert all(same(a, b) for a, b in zip(wanted[step], jumped.micro_batches(step), strict=True))
    assert not same(wanted[0][0], make(packed, seed=2).micro_batches(0)[0])


def test_micro_batches_cut_the_step(packed: tuple[TokenCache, Rows]) -> None:
    parts = make(packed).micro_batches(4)
    assert [part.rows for part in parts] == [4, 2]
    joined = make_batch(*packed, make(packed).row_numbers(4))
    for name in FIELDS:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(joined, name))


def test_fewer_rows_than_the_batch_size(text_cache: TextCache) -> None:
    cache = text_cache(TEXTS[:4])
    rows = pack_cache(cache, 32)
    batches = Batches(cache, rows, batch_size=5 * len(rows), micro_batch=64, seed=0)
    assert Counter(batches.row_numbers(0).tolist()) == {row: 5 for row in range(len(rows))}
    assert batches.micro_batches(7)[0].rows == 5 * len(rows)


def test_order_is_the_same_for_ever(packed: tuple[TokenCache, Rows]) -> None:
    rows = Rows(np.zeros(8, np.int64), np.zeros(8, np.int64), np.ones(8, np.int64), np.arange(9), 32)
    batches = Batches(packed[0], rows, batch_size=8, micro_batch=8, seed=42)
    assert batches.row_numbers(0).tolist() == [4, 5, 3, 0, 2, 7, 1, 6]
    assert batches.row_numbers(1).tolist() == [6, 0, 7, 2, 5, 1, 4, 3]


def test_sizes_that_do_not_fit(packed: tuple[TokenCache, Rows]) -> None:
    with pytest.raises(UserError, match="batch size 0"):
        make(packed, batch_size=0)
    with pytest.raises(UserError, match="micro-batch 0"):
        make(packed, micro_batch=0)
    nothing = np.zeros(0, np.int64)
    empty = Rows(nothing, nothing, nothing, np.zeros(1, np.int64), 32)
    with pytest.raises(UserError, match="no row"):
        make((packed[0], empty))
