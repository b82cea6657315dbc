"""Large caches: the same rules as for small ones, a shard at a time."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmcli.data.encode.cache import CacheWriter, TokenCache
from mmcli.data.pack import selection, shards
from mmcli.data.pack.batches import Batches, make_batch
from mmcli.data.pack.packing import Rows, pack_cache, trainable
from mmcli.data.pack.selection import Selection, scatter, shard_count, split_documents
from mmcli.data.pack.shards import ShardedRows, choose_documents, shard_documents
from mmcli.data.sources.sources import open_sources
from mmcli.errors import MmcliError, UserError
from mmcli.stage import Silent
from mmcli.text.tokenizer import Tokenizer

Mix = Callable[..., TokenCache]
SEQ_LEN = 48


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SHARD", 256)
    monkeypatch.setattr(shards, "BLOCK", 16)
    monkeypatch.setattr(shards, "CHUNK", 100)


@pytest.fixture
def mix(tmp_path: Path, tokenizer: Tokenizer) -> Mix:
    """A cache of 700 and 400 texts, some of them equal, with these weights."""

    def build(a: str = "", b: str = "") -> TokenCache:
        names = []
        for name, weight, text, count in (("a", a, "the quick fox", 700), ("b", b, "a lazy dog", 400)):
            path = tmp_path / f"{name}.jsonl"
            texts = (f"{text} {n % 600} " + "jumps " * (n % 7) for n in range(count))
            path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
            names.append(f"{path}{weight}")
        return TokenCache.build_or_open(tmp_path / "cache", open_sources(names), tokenizer)

    return build


def rows_of(cache: TokenCache, fraction: float = 0.02, *, seed: int = 5) -> tuple[ShardedRows, Selection]:
    choice, held = choose_documents(cache, fraction, seed, max_tokens=2000, seq_len=SEQ_LEN)
    return ShardedRows(cache, choice, SEQ_LEN, seed=seed, shards=shard_count(cache), report=Silent()), held


def documents_of(rows: ShardedRows) -> set[int]:
    return {document for row in range(len(rows)) for document, _, _ in rows.pieces(row)}


def test_shards_have_every_document_once_and_are_samples_of_the_whole(mix: Mix) -> None:
    cache = mix()
    assert shard_count(cache) == 5
    parts = [shard_documents(cache, shard, 5) for shard in range(5)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1100))
    for part in parts:
        assert len(part) <= 256 and 0.5 < (part < 700).mean() < 0.75


@pytest.mark.parametrize(("fraction", "most"), [(0.1, 10**6), (0.5, 300), (1e-9, 2000), (0.5, 1), (0.0, 2000)])
def test_what_is_held_out_is_what_a_small_cache_would_hold_out(mix: Mix, fraction: float, most: int) -> None:
    cache = mix()
    _, expected = split_documents(cache, fraction, 3, max_tokens=most)
    _, held = choose_documents(cache, fraction, 3, max_tokens=most, seq_len=SEQ_LEN)
    assert held.documents.tolist() == expected.documents.tolist()


def test_what_cannot_be_trained_on_is_not_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "chats.jsonl"
    chats = ({"instruction": f"q {n} " + "why " * 9 * (n % 9), "output": f"a {n}"} for n in range(300))
    path.write_text("".join(json.dumps(each) + "\n" for each in chats))
    cache = TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)], kind="chat"), tokenizer)
    usable = trainable(cache, Selection.whole(cache), SEQ_LEN)
    assert 0 < usable.sum() < 300
    _, expected = split_documents(cache, 0.2, 3, max_tokens=3000, usable_R=usable)
    _, held = choose_documents(cache, 0.2, 3, max_tokens=3000, seq_len=SEQ_LEN)
    assert held.documents.tolist() == expected.documents.tolist() and usable[held.documents].all()


def test_all_that_is_not_held_out_is_trained_on(mix: Mix) -> None:
    cache = mix()
    rows, held = rows_of(cache)
    assert len(held) and documents_of(rows) == set(range(1100)) - set(held.documents.tolist())
    lengths = cache.lengths
    assert rows.tokens == sum(int(lengths[document]) - 1 for document in documents_of(rows))
    assert sum(length for row in range(len(rows)) for _, _, length in rows.pieces(row)) == rows.tokens
    assert rows.utilisation > 0.95 and rows.describe().startswith(f"{len(rows):,} rows")


def test_a_mixture_has_the_shares_of_the_weights(mix: Mix) -> None:
    cache = mix(":0.3", ":0.7")
    rows, held = rows_of(cache)
    small, _ = split_documents(cache, 0.02, 5, max_tokens=2000)
    longest = int(cache.lengths.max())
    for taken, exact in zip(rows.source_tokens, small.source_tokens(cache), strict=True):
        assert abs(taken - exact) <= longest
    chosen = {int(i) for i in small.documents}
    assert len(documents_of(rows) ^ chosen) <= 6 and not documents_of(rows) & set(held.documents.tolist())
    assert "tokens per epoch: " in (rows.describe_mixture() or "")
    with pytest.raises(UserError, match="nothing is left"):
        choice, _ = choose_documents(mix(), 0.0, 5, max_tokens=1, seq_len=SEQ_LEN)
        everything = np.unique(scatter(np.asarray(cache.hashes), 5))
        empty = type(choice)(5, everything)
        ShardedRows(mix(), empty, SEQ_LEN, seed=5, shards=5, report=Silent())


def test_rows_are_counted_once_and_go_on_where_a_count_was_interrupted(
    mix: Mix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts beside the cache are those of these very rules; damaged ones count as none."""
    packed: list[int] = []
    pack = ShardedRows._pack

    def recording(rows: ShardedRows, shard: int) -> Rows:
        if len(packed) == 3:
            packed.clear()
            raise KeyboardInterrupt
        packed.append(shard)
        return pack(rows, shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardedRows, "_pack", recording)
        with pytest.raises(KeyboardInterrupt):
            rows_of(mix())
        whole, _ = rows_of(mix())
        assert packed == [3, 4]
        packed.clear()
        again, _ = rows_of(mix())
        assert packed == []
    assert again.shard_rows == whole.shard_rows
    assert (whole.tokens, whole.source_tokens, whole.describe()) == (
        again.tokens,
        again.source_tokens,
        again.describe(),
    )
    assert again.pieces(len(again) - 1) == whole.pieces(len(whole) - 1)
    kept = list(mix().folder.glob("rows-*.json"))
    rows_of(mix(), seed=6)
    rows_of(mix(":0.3", ":0.7"))
    assert len(list(mix().folder.glob("rows-*.json"))) == 3
    kept[0].write_bytes(kept[0].read_bytes().replace(b'"dropped": 0', b'"dropped": 9', 1))
    assert rows_of(mix())[0].dropped == whole.dropped == 0


def test_counts_of_other_rules_of_packing_are_refused(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = rows_of(mix())
    monkeypatch.setattr(shards, "pack_selection", lambda cache, *rest, **others: pack_cache(cache, SEQ_LEN))
    with pytest.raises(MmcliError, match=r"rows-\w+\.json does not count the rows .* shard 0"):
        other.pieces(0)


def test_an_epoch_reads_every_row_once_shard_after_shard(mix: Mix) -> None:
    rows, _ = rows_of(mix())
    batches = Batches(mix(), rows, batch_size=4, micro_batch=4, seed=5)
    steps = len(rows) // 4
    read = np.concatenate([batches.row_numbers(step) for step in range(steps)])
    assert len(set(read.tolist())) == steps * 4
    ends = np.cumsum([each[0] for each in rows.shard_rows])
    shard_of = np.searchsorted(ends, read, side="right").tolist()
    changes = sum(a != b for a, b in itertools.pairwise(shard_of))
    assert changes == len(rows.shard_rows) - 1  # each shard is packed once in an epoch
    again = Batches(mix(), rows, batch_size=4, micro_batch=4, seed=5)
    assert [again.row_numbers(step).tolist() for step in (steps + 3, 7, 0)] == [
        batches.row_numbers(step).tolist() for step in (steps + 3, 7, 0)
    ]
    assert read[: len(read) // 2].tolist() != batches.row_numbers(steps).tolist()
    batch = make_batch(mix(), rows, batches.row_numbers(3))
    assert batch.tokens > 0.9 * batch.ids_BT.size


def test_weights_may_change_over_shards_too(mix: Mix) -> None:
    cache = mix(":0.9..0.1", ":0.1..0.9")
    rows, _ = rows_of(cache)
    batches = Batches(cache, rows, batch_size=4, micro_batch=4, seed=5)
    steps = len(rows) // 4
    batches.plan(steps)
    read = [batches.row_numbers(step) for step in range(steps)]
    assert max(Counter(np.concatenate(read).tolist()).values()) == 1

    def of_second(numbers: np.ndarray) -> float:
        return float(np.mean([rows.pieces(int(row))[0][0] >= 700 for row in numbers]))

    assert of_second(np.concatenate(read[: steps // 5])) < 0.3 < 0.7 < of_second(np.concatenate(read[-(steps // 5) :]))


def test_a_cache_of_one_shard_is_ordered_as_before(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SHARD", 2**20)
    cache = mix()
    assert shard_count(cache) == 1
    rows = pack_cache(cache, SEQ_LEN, seed=5)
    batches = Batches(cache, rows, batch_size=4, micro_batch=4, seed=5)
    draws = np.random.Philox(key=[5, 1]).random_raw(len(rows))
    assert batches.row_numbers(0).tolist() == np.argsort(draws, kind="stable")[:4].tolist()


def test_memory_does_not_grow_with_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SHARD", 2000)
    monkeypatch.setattr(shards, "BLOCK", 100)
    monkeypatch.setattr(shards, "CHUNK", 2000)

    def kept_and_peak(documents: int) -> tuple[int, int]:
        folder = tmp_path / str(documents)
        folder.mkdir()
        writer = CacheWriter(folder, np.dtype(np.uint16), masked=False)
        for number in range(documents):
            writer.append([number % 100, number // 100 % 100, number // 10_000] * 3, None)
        tally = {"kept": documents, "rejected": 0, "reasons": {}, "first": []}
        counts = {"sequences": documents, "tokens": writer.tokens, "text_bytes": 0, "parts": [documents]}
        rest = {"dtype": "uint16", "masked": False, "sequences_per_record": 1, "pad_id": 0, "tally": tally}
        writer.finish({"key": "", "kind": "text", **counts, **rest})
        cache = TokenCache(folder)
        rows_of(cache)
        tracemalloc.start()
        try:
            rows, _ = rows_of(cache)
            batches = Batches(cache, rows, batch_size=4, micro_batch=4, seed=5)
            for step in range(0, len(rows) // 4, 50):
                batches.micro_batches(step)
            return tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    small, large = kept_and_peak(4000), kept_and_peak(16_000)
    assert large[0] < 1.3 * small[0] and large[1] < 1.3 * small[1]
