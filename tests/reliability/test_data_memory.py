"""Data larger than memory: what is held does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import mmcli.data.encode.encoders
from mmcli.data.encode.cache import TokenCache
from mmcli.data.record import EncodedRecord, Record, RecordError
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

SIZE = 12 * 2**20
TEXT = "some words of a text " * 20


def peak(records: Iterator[Any]) -> tuple[int, int]:
    """(records, the most bytes held at once while reading them)."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in records)
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "head", "row", "tail"),
    [
        ("a.txt", "", TEXT + "\n", ""),
        ("prose.txt", "", TEXT + "\n\n", ""),
        ("a.jsonl", "", json.dumps({"text": TEXT}) + "\n", ""),
        ("a.json", "[", json.dumps({"text": TEXT}) + ",", '{"text": "last"}]'),
        ("pretty.json", "[\n", json.dumps({"text": TEXT}, indent=1) + ",\n", '{"text": "last"}\n]'),
        ("a.csv", "text\n", TEXT + "\n", ""),
        ("one-line.txt", "", TEXT, ""),
    ],
)
def test_reading_is_flat(tmp_path: Path, name: str, head: str, row: str, tail: str) -> None:
    path = tmp_path / name
    repeats = SIZE // len(row)
    path.write_text(head + row * repeats + tail)
    count, held = peak(open_sources([str(path)]).records())
    assert count >= repeats // (2500 if name == "one-line.txt" else 50)
    assert held < SIZE / 2


def test_building_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": TEXT}) + "\n"
    path.write_text(row * (SIZE // len(row)))
    tokenizer = train_tokenizer([TEXT], vocab_size=300)
    monkeypatch.setattr(mmcli.data.encode.encoders, "BATCH_RECORDS", 100)

    def encode(
        tokenizer: Tokenizer, records: Sequence[Record], options: Mapping[str, Any]
    ) -> list[EncodedRecord | RecordError]:
        return [EncodedRecord([list(range(200))], None, 1) for _ in records]

    tracemalloc.start()
    try:
        cache = TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)]), tokenizer, encode=encode)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cache.tokens == 200 * (SIZE // len(row))
    assert held < SIZE / 2
