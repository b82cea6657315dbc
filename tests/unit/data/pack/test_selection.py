from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.pack.selection import split_documents

TextCache = Callable[[list[str]], TokenCache]
TEXTS = [f"document {number} about the fox" for number in range(400)]


def texts_of(cache: TokenCache, documents: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(cache.ids(int(i)).tolist()) for i in documents]


def test_parts_are_disjoint_whole_and_about_the_share(text_cache: TextCache) -> None:
    cache = text_cache(TEXTS)
    train, held = split_documents(cache, 0.1, seed=1)
    assert sorted([*train.documents, *held.documents]) == list(range(400))
    assert 20 <= len(held) <= 60
    for part in (train, held):
        assert (part.starts == 0).all()
        assert (part.stops == cache.lengths[part.documents]).all()
        assert part.tokens == int(cache.lengths[part.documents].sum())


def test_duplicates_fall_on_the_same_side(text_cache: TextCache) -> None:
    cache = text_cache(TEXTS[:50] * 4)
    train, held = split_documents(cache, 0.2, seed=1)
    assert len(held) % 4 == 0
    assert not set(texts_of(cache, train.documents)) & set(texts_of(cache, held.documents))


def test_documents_keep_their_side_when_others_come(text_cache: TextCache) -> None:
    few = text_cache(TEXTS[:200])
    before = set(texts_of(few, split_documents(few, 0.1, seed=1)[1].documents))
    more = text_cache(TEXTS[::-1])
    after = set(texts_of(more, split_documents(more, 0.1, seed=1)[1].documents))
    assert before < after


def test_seed_decides(text_cache: TextCache) -> None:
    cache = text_cache(TEXTS)
    held = [split_documents(cache, 0.1, seed=seed)[1].documents.tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_bounds(text_cache: TextCache) -> None:
    cache = text_cache(TEXTS)
    assert [len(part) for part in split_documents(cache, 0.0, seed=1)] == [400, 0]
    assert len(split_documents(cache, 1e-9, seed=1)[1]) == 1
    assert split_documents(cache, 0.5, seed=1, max_tokens=200)[1].tokens <= 200
    assert len(split_documents(cache, 0.5, seed=1, max_tokens=1)[1]) == 1


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.9])
def test_one_long_text_gives_its_end(text_cache: TextCache, fraction: float) -> None:
    cache = text_cache(["the quick brown fox " * 200])
    train, held = split_documents(cache, fraction, seed=1)
    n = int(cache.lengths[0])
    assert (train.starts[0], train.stops[0]) == (0, held.starts[0])
    assert held.stops[0] == n
    assert held.tokens == min(round(fraction * n), n // 2)
    assert split_documents(cache, 0.5, seed=1, max_tokens=7)[1].tokens == 7


def test_few_texts_give_the_end_of_the_longest_and_its_copies(text_cache: TextCache) -> None:
    cache = text_cache(["short one", "the quick brown fox " * 50, "short two", "the quick brown fox " * 50])
    train, held = split_documents(cache, 0.1, seed=1)
    assert held.documents.tolist() == [1]
    assert train.stops[1] == train.stops[3] == held.starts[0]
    assert train.stops[0] == cache.lengths[0]


def test_text_too_short_to_share_is_all_for_training(text_cache: TextCache) -> None:
    train, held = split_documents(text_cache(["a"]), 0.1, seed=1)
    assert (len(train), len(held)) == (1, 0)


def test_conversations_are_never_cut(chat_cache: Callable[[list[tuple[str, str]]], TokenCache]) -> None:
    train, held = split_documents(chat_cache([("q", "a " * 50), ("other q", "a")]), 0.01, seed=1)
    assert (len(train), len(held)) == (1, 1)
    train, held = split_documents(chat_cache([("q", "a " * 50)] * 3), 0.5, seed=1)
    assert (len(train), len(held)) == (3, 0)
