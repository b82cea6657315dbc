"""Parquet files: rows as records with their numbers, odd values, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mmcli.data.encode.cache import TokenCache
from mmcli.data.record import Record, Rejected
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def read(name: str, kind: str = "text", **more: Any) -> list[Record | Rejected]:
    return list(open_sources([name], kind=kind, **more).records())


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", {"text": "中文 and\nmore"}),
        ("chat", {"messages": CHAT}),
        ("preference", {"prompt": "q", "chosen": "good", "rejected": "bad"}),
    ],
)
def test_rows_are_the_records_that_jsonl_holds(tmp_path: Path, tokenizer: Tokenizer, kind: str, value: Any) -> None:
    values = [value] * 600
    table = write(tmp_path / "a.parquet", values, row_group_size=250)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in values))
    rows, expected = read(table, kind), read(str(lines), kind)
    assert [(item.line, item.value) for item in rows if isinstance(item, Record)] == [
        (item.line, item.value) for item in expected if isinstance(item, Record)
    ]
    assert len(rows) == 600
    caches = [
        TokenCache.build_or_open(tmp_path / "cache", open_sources([name], kind=kind), tokenizer)
        for name in (table, str(lines))
    ]
    assert (caches[0].folder / "tokens.bin").read_bytes() == (caches[1].folder / "tokens.bin").read_bytes()


def test_null_fields_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": "one", "messages": None}, {"text": None, "messages": [{**CHAT[0], "name": None}, CHAT[1]]}]
    items = read(write(tmp_path / "a.parquet", rows))
    assert [item.value for item in items if isinstance(item, Record)] == [{"text": "one"}, {"messages": CHAT}]


def test_what_json_has_no_type_for_becomes_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    name = write(tmp_path / "a.parquet", [{"text": b"bytes", "day": date(2020, 1, 2)}, {"text": b" ", "day": None}])
    (first, _) = read(name)
    assert isinstance(first, Record) and first.value == {"text": "bytes", "day": "2020-01-02"}
    cache = TokenCache.build_or_open(
        tmp_path / "cache", open_sources([name]), tokenizer, quarantine=tmp_path / "rejected.jsonl"
    )
    assert (cache.tally.kept, cache.tally.rejected) == (1, 1)


def test_bad_rows_are_rejected_by_their_number(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"\xff\xfe", b"nul\0", b"fine too"])
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": raw.view(pyarrow.string())}), path)
    items = read(str(path))
    assert [item.line for item in items if isinstance(item, Record)] == [1, 4]
    assert [(item.line, item.reason.split(":")[0]) for item in items if isinstance(item, Rejected)] == [
        (2, "not UTF-8"),
        (3, "a NUL character"),
    ]


@pytest.mark.parametrize("content", [b"x" * 99, b"PAR1" + b"x" * 99 + b"PAR1"], ids=["text", "bad footer"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, tokenizer: Tokenizer, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    (item,) = read(str(path))
    assert isinstance(item, Rejected) and item.reason.startswith("the Parquet data is damaged: ")
    with pytest.raises(UserError, match="has no usable record"):
        TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)]), tokenizer)


def test_damage_in_the_middle_keeps_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": f"number {n} of many"} for n in range(20_000)]
    write(path, rows, row_group_size=5_000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    *kept, last = read(str(path))
    assert len(kept) >= 5_000 and all(isinstance(item, Record) for item in kept)
    assert isinstance(last, Rejected) and last.line == len(kept) + 1


def test_empty_tables_are_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(UserError, match=r"a\.parquet is empty"):
        open_sources([str(path)])
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.parquet is empty"):
        open_sources([str(path)])
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(b"x")
    with pytest.raises(UserError, match="of no known format"):
        open_sources([str(packed)])


def test_bytes_are_told_up_to_the_size(tmp_path: Path) -> None:
    name = write(tmp_path / "a.parquet", [{"text": f"text {n}"} for n in range(1000)])
    told: list[int] = []
    sources = open_sources([name])
    assert len(list(sources.records(told.append))) == 1000
    assert sum(told) == sources.size == sources.total and min(told) >= 0


def test_reading_is_flat_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pyarrow.array(["some words of a text " * 200] * 1000)
    with parquet.ParquetWriter(path, pyarrow.schema({"text": pyarrow.string()}), use_dictionary=False) as writer:
        for _ in range(40):  # 160 MB of text
            writer.write_table(pyarrow.table({"text": text}))
    code = (
        "import resource, sys, pyarrow, pyarrow.parquet\n"
        "from mmcli.data.sources.sources import open_sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(1 for _ in open_sources([sys.argv[1]]).records()))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 40_000
    assert grown < 60  # MB


def test_pyarrow_is_not_loaded_for_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    code = (
        "import sys\nfrom mmcli.data.sources.sources import open_sources\nlist(open_sources([sys.argv[1]]).records())\n"
    )
    code += "print([name for name in ('pyarrow', 'datasets', 'huggingface_hub') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
