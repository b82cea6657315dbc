from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.data.encode.cache import CacheWriter, TokenCache
from mmcli.data.encode.stored import DamagedCacheError
from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.stage import Silent
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

Results = list[EncodedRecord | RecordError]
TEXTS = ["the quick brown fox", "jumps", "over <|im_end|> the lazy dog", "é " * 50]


class Told(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, float, float | None, str]] = []
        self.warnings: list[str] = []

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        self.done.append((task, done, total, unit))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def jsonl(path: Path, values: Sequence[Any]) -> Path:
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])


def build(path: Path, tokenizer: Tokenizer, kind: Any = "text", strict: bool = False, **more: Any) -> TokenCache:
    sources = open_sources([str(path)], kind=kind, strict=strict)
    return TokenCache.build_or_open(path.parent / "cache", sources, tokenizer, **more)


def test_sequences_come_back(data: Path, tokenizer: Tokenizer) -> None:
    cache = build(data, tokenizer)
    documents = [tokenizer.encode_document(text) for text in TEXTS]
    assert len(cache) == 4
    assert [cache.ids(i).tolist() for i in range(4)] == documents
    assert cache.lengths.tolist() == [len(ids) for ids in documents]
    assert cache.tokens == sum(map(len, documents))
    assert cache.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert cache.ids(2, 3, 6).tolist() == documents[2][3:6]
    assert cache.ids(2, 3).tolist() == documents[2][3:]
    assert cache.ids(0, 0, 10**6).tolist() == documents[0]
    assert cache.trained(2, 3, 6).tolist() == [1, 1, 1]
    assert not cache.masked
    assert (cache.ids(0).dtype, cache.pad_id) == (np.uint16, tokenizer.pad_id)


def test_chat_keeps_what_is_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": messages}] * 2)
    cache = build(path, tokenizer, "chat")
    encoded = encode_chat(tokenizer, messages)
    assert cache.masked
    assert cache.ids(1).tolist() == encoded.ids
    assert cache.trained(1).tolist() == encoded.trained
    assert cache.trained(1, 2, 9).tolist() == encoded.trained[2:9]
    assert cache.hashes[0] == cache.hashes[1]


def test_preference_has_two_sequences(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": f"no {i}"} for i in range(3)])
    cache = build(path, tokenizer, "preference")
    assert (len(cache), cache.sequences_per_record, cache.tally.kept) == (6, 2, 3)
    assert cache.hashes[0] == cache.hashes[2]
    assert cache.hashes[1] != cache.hashes[3]


def test_large_vocabulary_is_kept_in_four_bytes(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    cache = build(data, tokenizer)
    assert cache.ids(0).dtype == np.uint32
    assert cache.ids(0).tolist() == tokenizer.encode_document(TEXTS[0])


def inode(cache: TokenCache) -> int:
    return (cache.folder / "tokens.bin").stat().st_ino


def test_touched_data_is_reused_and_edited_data_is_not(data: Path, tokenizer: Tokenizer) -> None:
    first = build(data, tokenizer)
    os.utime(data, (1, 1))
    again = build(data, tokenizer)
    assert (again.key, inode(again)) == (first.key, inode(first))
    assert again.tally == first.tally
    size, time = data.stat().st_size, data.stat().st_mtime_ns
    data.write_text(data.read_text().replace("quick", "quack"))
    os.utime(data, ns=(time, time))
    assert data.stat().st_size == size
    edited = build(data, tokenizer)
    assert edited.key != first.key
    assert edited.ids(0).tolist() == tokenizer.encode_document("the quack brown fox")


def test_key_knows_tokenizer_options_and_encoder(data: Path, tokenizer: Tokenizer) -> None:
    def backwards(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        return [EncodedRecord([tokenizer.encode_document(record.value["text"])[::-1]], None, 1) for record in records]

    other = train_tokenizer(["another text to learn from"], vocab_size=300)
    caches = [
        build(data, tokenizer),
        build(data, other),
        build(data, tokenizer, options={"x": 1}),
        build(data, tokenizer, options={"x": 2}),
        build(data, tokenizer, encode=backwards),
    ]
    assert len({cache.key for cache in caches}) == 5
    assert caches[4].ids(0).tolist() == caches[0].ids(0).tolist()[::-1]


def test_rejected_records_are_counted_and_listed_also_from_a_reused_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    values: list[Any] = [{"text": "fine"}, "{oops", {"text": ""}, {"messages": []}, {"text": "fine too"}]
    path = jsonl(tmp_path / "a.jsonl", values)
    for name in ("first.jsonl", "second.jsonl"):
        quarantine = tmp_path / "run" / name
        cache = build(path, tokenizer, quarantine=quarantine)
        assert (cache.tally.kept, cache.tally.rejected, len(cache)) == (2, 3, 2)
        assert set(cache.tally.reasons) == {
            "not JSON",
            '"text" is empty',
            "a chat record where a text record is needed",
        }
        assert all(line.startswith(f"{path}:") for line in cache.tally.first)
        entries = [json.loads(line) for line in quarantine.read_text().splitlines()]
        assert sorted((entry["line"], entry["raw"]) for entry in entries) == [
            (2, "{oops"),
            (3, '{"text": ""}'),
            (4, '{"messages": []}'),
        ]


def test_strict_refuses_the_first_rejection_built_or_reused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "fine"}, "{oops"])
    with pytest.raises(UserError, match=r"a\.jsonl:2 not JSON"):
        build(path, tokenizer, strict=True)
    assert list((tmp_path / "cache").iterdir()) == []
    build(path, tokenizer)
    with pytest.raises(UserError, match=r"a\.jsonl:2 not JSON"):
        build(path, tokenizer, strict=True)


def test_data_without_a_usable_record(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["{oops", "[1]"])
    quarantine = tmp_path / "q.jsonl"
    with pytest.raises(UserError) as caught:
        build(path, tokenizer, quarantine=quarantine)
    assert caught.value.what.startswith(f"{path} has no usable record: 2 rejected, the first at line 1: not JSON")
    assert len(quarantine.read_text().splitlines()) == 2
    assert list((tmp_path / "cache").iterdir()) == []


def test_records_that_give_nothing_to_learn_are_rejected(data: Path, tokenizer: Tokenizer) -> None:
    results = iter([EncodedRecord([[5]], None, 1), EncodedRecord([[]], None, 1), EncodedRecord([[5, 6]], None, 1)])

    def encode(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        return [next(results, RecordError("last")) for _ in records]

    cache = build(data, tokenizer, encode=encode)
    assert cache.tally.reasons == {"fewer than two tokens": 2, "last": 1}
    assert [cache.ids(i).tolist() for i in range(len(cache))] == [[5, 6]]


def test_untrained_conversation_is_rejected(data: Path, tokenizer: Tokenizer) -> None:
    masks = iter([[True, False], [False, True], [False, False], [True, True]])

    def encode(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        return [EncodedRecord([[5, 6]], [next(masks)], 1) for _ in records]

    cache = build(data, tokenizer, encode=encode)
    assert cache.tally.reasons == {"no token to train on": 2}
    assert [cache.trained(i).tolist() for i in range(len(cache))] == [[0, 1], [1, 1]]


@pytest.mark.parametrize("damage", ["cut", "gone", "meta"])
def test_damaged_cache_is_made_anew_and_told(data: Path, tokenizer: Tokenizer, damage: str) -> None:
    cache = build(data, tokenizer)
    ids = cache.ids(0).tolist()
    tokens = cache.folder / "tokens.bin"
    if damage == "cut":
        os.truncate(tokens, tokens.stat().st_size - 2)
    elif damage == "gone":
        tokens.unlink()
    else:
        (cache.folder / "meta.json").write_text("{")
    told = Told()
    assert build(data, tokenizer, report=told).ids(0).tolist() == ids
    assert len(told.warnings) == 1
    assert [path.name for path in (data.parent / "cache").iterdir()] == [cache.key]


FILES = ["tokens.bin", "trained.bin", "offsets.bin", "hashes.bin", "meta.json", "rejected.jsonl"]


@pytest.fixture
def masked(tmp_path: Path, tokenizer: Tokenizer) -> TokenCache:
    """A cache with every kind of file."""
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    path = jsonl(tmp_path / "a.jsonl", [*[{"messages": messages}] * 20, "{oops"])
    return build(path, tokenizer, "chat")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_of_any_file_is_named_and_the_cache_is_made_anew(
    masked: TokenCache, tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    path = masked.folder / name
    whole, ids = path.read_bytes(), masked.ids(3).tolist()
    for at in range(0, len(whole), max(1, len(whole) // 5)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        told = Told()
        assert build(tmp_path / "a.jsonl", tokenizer, "chat", report=told).ids(3).tolist() == ids
        assert len(told.warnings) == 1 and f"{path} is damaged" in told.warnings[0], at
        assert name == "meta.json" or f"bytes 0 to {len(whole) - 1:,}" in told.warnings[0]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("name", FILES)
def test_a_cut_of_any_file_is_named(masked: TokenCache, name: str) -> None:
    path = masked.folder / name
    for size in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        whole = path.read_bytes()
        os.truncate(path, size)
        with pytest.raises(DamagedCacheError, match=name):
            TokenCache(masked.folder)
        path.write_bytes(whole)


def test_damage_of_a_large_file_names_its_bytes(data: Path, tokenizer: Tokenizer) -> None:
    def encode(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        return [EncodedRecord([[5, 6] * 500_000], None, 1) for _ in records]

    folder = build(data, tokenizer, encode=encode).folder
    with open(folder / "tokens.bin", "r+b") as file:
        file.seek(3 * 2**20 + 7)
        file.write(bytes(4096))
    with pytest.raises(DamagedCacheError, match=r"tokens\.bin is damaged: bytes 3,145,728 to 4,194,303$"):
        TokenCache(folder)


@pytest.mark.parametrize("offsets", [[0, 9, 5, 20], [1, 5, 9, 20], [0, 5, 9, 2**40]])
def test_offsets_must_rise_within_the_tokens(tmp_path: Path, offsets: list[int]) -> None:
    """Also where the checksums are right, as after a fault of whoever wrote them."""
    writer = CacheWriter(tmp_path, np.dtype(np.uint16), masked=False)
    for length in (5, 4, 11):
        writer.append([7] * length, None)
    writer._files["offsets.bin"].seek(0)
    writer._files["offsets.bin"].write(np.array(offsets, dtype=np.int64).tobytes())
    tally = {"kept": 3, "rejected": 0, "reasons": {}, "first": []}
    numbers = {"tokens": writer.tokens, "text_bytes": 9, "pad_id": 0, "parts": [3], "sequences_per_record": 1}
    writer.finish({"key": "k", "kind": "text", "masked": False, "dtype": "uint16", "tally": tally, **numbers})
    with pytest.raises(DamagedCacheError, match="does not cut 20 tokens into sequences"):
        TokenCache(tmp_path)


def test_progress_ends_at_the_size_of_the_data(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "word " * 20}] * 5000)
    told = Told()
    build(path, tokenizer, report=told)
    size = path.stat().st_size
    done = [value for _, value, _, _ in told.done]
    assert {(task, total, unit) for task, _, total, unit in told.done} == {("encode", size, "B")}
    assert done == sorted(done)
    assert done[-1] == size
    assert done.count(size) == 1
    assert len(done) > 1
    told.done.clear()
    build(path, tokenizer, report=told)
    assert told.done == []


def test_data_that_changes_while_it_is_encoded_is_refused(data: Path, tokenizer: Tokenizer) -> None:
    def encode(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        data.write_text("something else")
        return [EncodedRecord([[5, 6]], None, 1) for _ in records]

    with pytest.raises(UserError, match="changed while it was read"):
        build(data, tokenizer, encode=encode)
    assert list((data.parent / "cache").iterdir()) == []


def test_loser_of_two_builders_uses_the_winners_cache(data: Path, tokenizer: Tokenizer) -> None:
    built: list[TokenCache] = []
    begun: list[bool] = []

    def race(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        if not begun:  # while the first builds, a second builds the same and is done before it
            begun.append(True)
            built.append(build(data, tokenizer, encode=race))
        return [EncodedRecord([[5, 6]], None, 1) for _ in records]

    cache = build(data, tokenizer, encode=race)
    assert inode(cache) == inode(built[0])
    assert [path.name for path in (data.parent / "cache").iterdir()] == [cache.key]


def test_batches_that_are_encoded_ahead_keep_their_order(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"the fox {number} " + "jumps " * (number % 5) for number in range(50)]
    values: list[Any] = [{"text": text} for text in texts]
    values[20:20] = ["{", {"text": " "}]
    path = jsonl(tmp_path / "a.jsonl", values)
    whole = build(path, tokenizer)
    monkeypatch.setattr("mmcli.data.encode.encoders.BATCH_RECORDS", 3)
    (tmp_path / "again").mkdir()
    small = build(jsonl(tmp_path / "again" / "a.jsonl", values), tokenizer)
    assert small.folder != whole.folder
    assert [small.ids(i).tolist() for i in range(len(small))] == [tokenizer.encode_document(text) for text in texts]
    assert small.tally.reasons == whole.tally.reasons and small.text_bytes == whole.text_bytes
    assert small.sequences_by_source.tolist() == [50]


def test_an_error_of_the_encoder_is_the_builders(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(texts: Sequence[str]) -> list[list[int]]:
        raise MemoryError("no room")

    monkeypatch.setattr(tokenizer, "encode_texts", broken)
    with pytest.raises(MemoryError, match="no room"):
        build(data, tokenizer)
    assert list((data.parent / "cache").iterdir()) == []


def test_labels_are_kept_where_records_have_them(data: Path, tokenizer: Tokenizer) -> None:
    numbers = iter([0.0, 1.0, 0.5, *[2.0] * 9])

    def labelled(tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]) -> Results:
        return [EncodedRecord([[5, 6], [7, 8, 9]], None, 1, label=next(numbers)) for _ in records]

    cache = build(data, tokenizer, encode=labelled)
    assert cache.labels is not None and len(cache.labels) == len(cache)
    assert cache.labels[:6].tolist() == [0.0, 0.0, 1.0, 1.0, 0.5, 0.5][: len(cache)]
    plain = build(data, tokenizer)
    assert plain.labels is None and not (plain.folder / "labels.bin").exists()
    (cache.folder / "labels.bin").write_bytes(b"")
    with pytest.raises(DamagedCacheError, match=r"labels\.bin"):
        TokenCache(cache.folder)
