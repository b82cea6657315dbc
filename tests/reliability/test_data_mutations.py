"""Broken data files: every record is kept or rejected with its place, and nothing ends in a traceback."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from attack.rows import NOISE, VALUES, mutated, swapped

from mmcli.data.encode.cache import TokenCache
from mmcli.data.record import Record, RecordError, Rejected
from mmcli.data.records.conversations import as_chat
from mmcli.data.records.kinds import as_text
from mmcli.data.records.preferences import as_preference
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a text to learn from"], vocab_size=300)


def test_ten_thousand_mutated_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pick = random.Random(5)
    lines = [mutated(json.dumps(VALUES[0], ensure_ascii=pick.random() < 0.5).encode(), pick) for _ in range(10_000)]
    good = b'{"text": "fine"}'
    path, quarantine = tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"
    path.write_bytes(b"\n".join([good, *lines, good]) + b"\n")
    cache = TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)]), tokenizer, quarantine=quarantine)
    tally = cache.tally
    blank = sum(not line.decode("utf-8", "replace").strip() for line in lines)
    assert tally.total == 10_002 - blank
    assert tally.kept == len(cache)
    assert tally.kept > 1000
    assert tally.rejected > 5000
    assert sum(tally.reasons.values()) == tally.rejected
    entries = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert len(entries) == tally.rejected
    places = {item.line for item in open_sources([str(path)]).records()}
    assert places == {
        number for number, line in enumerate([good, *lines, good], 1) if line.decode("utf-8", "replace").strip()
    }
    assert max(Counter(entry["line"] for entry in entries).values()) == 1
    assert all(entry["file"] == str(path) and entry["reason"] and 2 <= entry["line"] <= 10_001 for entry in entries)


@pytest.mark.parametrize("indent", [None, 1])
def test_mutated_arrays_go_on_after_the_damage(tmp_path: Path, indent: int | None) -> None:
    pick = random.Random(6)
    rows = [{"text": f"row {number}"} for number in range(40)]
    path = tmp_path / "a.json"
    kept = 0
    for _ in range(150):
        parts = [json.dumps(row, indent=indent).encode() for row in rows]
        parts[20] = mutated(parts[20].replace(b"\n", b" "), pick)
        path.write_bytes(b"[\n" + b",\n".join(b"  " + part for part in parts) + b"\n]\n")
        items = list(open_sources([str(path)]).records())
        values = [item.value for item in items if isinstance(item, Record)]
        assert values[:20] == rows[:20]
        assert values[-19:] == rows[21:]
        kept += len(items)
    assert kept >= 39 * 150


@pytest.mark.parametrize("ending", ["txt", "md", "json", "jsonl", "csv", "txt.gz", "json.zst"])
def test_any_bytes_in_any_file(tmp_path: Path, ending: str) -> None:
    pick = random.Random(7)
    source = "\n".join(json.dumps(value, ensure_ascii=False) for value in VALUES).encode()
    starts = [
        b"",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"[",
        b"{",
        b"\x1f\x8b\x08\0",
        b"\x28\xb5\x2f\xfd",
        b"text\n",
    ]
    for _ in range(60):
        noise = [
            pick.randbytes(pick.randrange(40)),
            source[pick.randrange(len(source)) :][:300],
            pick.choice(NOISE),
            b"\n",
        ]
        content = pick.choice(starts) + b"".join(pick.choice(noise) for _ in range(pick.randrange(1, 30)))
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content)
        try:
            items = list(open_sources([str(path)]).records())
        except UserError as error:
            assert "is empty" in error.what or "holds" in error.what
            continue
        assert items
        for item in items:
            assert item.file == str(path)
            assert 1 <= item.line <= content.count(b"\n") + 2 or ending.endswith((".gz", ".zst"))
            assert isinstance(item, Record) or item.reason


def test_records_of_wrong_types_are_refused_with_a_reason() -> None:
    pick = random.Random(8)
    outcomes: Counter[str] = Counter()
    for _ in range(6000):
        value = swapped(pick.choice(VALUES), pick)
        if not isinstance(value, dict):
            continue
        for read in (as_text, as_chat, as_preference):
            try:
                read(Record("f", 1, value))
                outcomes["kept"] += 1
            except RecordError as error:
                assert str(error)
                outcomes["refused"] += 1
    assert outcomes["kept"] > 500
    assert outcomes["refused"] > 5000


def test_chats_of_wrong_types_are_counted_by_the_encoder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pick = random.Random(9)
    values = [VALUES[1], *(swapped(pick.choice(VALUES[1:4]), pick) for _ in range(400))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    sources = open_sources([str(path)], kind="chat")
    cache = TokenCache.build_or_open(tmp_path / "cache", sources, tokenizer)
    assert cache.tally.total == 401
    assert 50 < cache.tally.kept < 400


def test_one_bad_line_among_good_ones_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 500 + b'{"text": "\xff"}\n' + b'{"text": "b"}\n' * 500)
    items = list(open_sources([str(path)]).records())
    assert [(item.line, item.raw) for item in items if isinstance(item, Rejected)] == [(501, b'{"text": "\xff"}')]
    cache = TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)]), tokenizer)
    assert (cache.tally.kept, cache.tally.rejected) == (1000, 1)
    assert cache.tally.first == [f"{path}:501 not UTF-8: byte 0xff at character 11"]
