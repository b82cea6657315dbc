"""Small files that claim much: nothing is allocated or read without an end, and what comes before is kept."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from mmcli.data.formats import compression, tables
from mmcli.data.record import Record, Rejected
from mmcli.data.sources.sources import open_sources

Read = Callable[..., tuple[list[Any], list[Any]]]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": lambda data: bz2.compress(data, compresslevel=1),
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def lines(count: int) -> bytes:
    return "".join(json.dumps({"text": f"{number} {os.urandom(40).hex()}"}) + "\n" for number in range(count)).encode()


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", ["t.jsonl", "t.txt", "t.json", "t.md"])
def test_every_line_before_the_damage_is_kept(read: Read, ending: str, name: str) -> None:
    content = lines(3000)
    if name == "t.json":
        content = b"[\n" + content.rstrip().replace(b"}\n", b"},\n") + b"\n]"
    packed = PACKERS[ending](content)
    cut = packed[: len(packed) * 9 // 10]
    whole = compression_of(cut, ending).count(b"\n")  # whole lines that can be unpacked
    kept, rejected = read(cut, name + ending)
    held = sum(record.value["text"].count('"text"') for record in kept) if name == "t.md" else len(kept)
    assert whole - 1 <= held <= whole and whole > 500
    assert rejected[-1].reason.startswith("the compressed data is damaged: ")


def compression_of(packed: bytes, ending: str) -> bytes:
    """What the library itself can unpack of a part."""
    if ending == ".gz":
        import zlib

        return zlib.decompressobj(wbits=31).decompress(packed)
    if ending == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}[ending]().decompress(packed)


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("content", ['{"text": "one"}\n{"text": "two"}\n'])
def test_each_compression_reads_as_the_plain_file(read: Read, ending: str, content: str) -> None:
    for name in ("t.jsonl", "t.ndjson"):
        kept, rejected = read(PACKERS[ending](content.encode()), name + ending)
        assert [record.value["text"] for record in kept] == ["one", "two"] and not rejected
    half = content.encode().split(b"\n", 1)
    kept, _ = read(PACKERS[ending](half[0] + b"\n") + PACKERS[ending](half[1]), "two-members.jsonl" + ending)
    assert len(kept) == 2


def test_tsv_has_tabs_whatever_its_first_row_has_more_of(read: Read) -> None:
    kept, rejected = read("text\ta,b,c\none, two\tx\n", "a.tsv")
    assert [record.value for record in kept] == [{"text": "one, two", "a,b,c": "x"}] and not rejected


@pytest.mark.parametrize("ending", PACKERS)
def test_a_file_that_unpacks_to_far_more_than_its_size_ends(
    read: Read, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 2**20)
    monkeypatch.setattr(compression, "MOST_RATIO", 100)
    kept, rejected = read(PACKERS[ending](b'{"text": "fine"}\n' + b"x" * 2**25), "a.jsonl" + ending)
    assert [record.value["text"] for record in kept] == ["fine"]
    assert "unpacks to more than 100 times its size" in rejected[-1].reason


@pytest.mark.parametrize("depth", [101, 990, 5_000, 100_000])
def test_deep_nesting_is_rejected_and_never_an_error(read: Read, depth: int) -> None:
    deep = '{"text": "a\\u0041", "more": ' + "[" * depth + "]" * depth + "}"
    fine = '{"text": "b", "more": ' + "[" * 90 + "]" * 90 + "}"
    for name, content in (("a.jsonl", f"{deep}\n{fine}\n"), ("a.json", f"[\n{deep},\n{fine}\n]")):
        kept, rejected = read(content, name)
        assert [record.value["text"] for record in kept] == ["b"] and len(rejected) == 1
    kept, rejected = read(deep, "object.json")
    assert not kept and len(rejected) == 1


def test_a_record_of_millions_of_values_is_rejected(read: Read) -> None:
    kept, rejected = read('{"text": "a", "n": [' + "{}," * 4_100_000 + '1]}\n{"text": "b"}\n', "a.jsonl")
    assert [record.value["text"] for record in kept] == ["b"]
    assert rejected[0].reason == "a record is too large: more than 4,000,000 values"


def test_a_parquet_column_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": ["x" * 2**25]}), path, use_dictionary=False, compression="zstd", write_statistics=False
    )
    monkeypatch.setattr(tables, "FREE_BYTES", 2**20)
    (item,) = open_sources([str(path)]).records()
    assert isinstance(item, Rejected) and "unpacks to more than 1,000 times its size" in item.reason


def test_parquet_rows_that_repeat_a_long_value_are_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 60, pyarrow.int32()), ["x" * 10_000_000])
    parquet.write_table(pyarrow.table({"text": column.cast(schema)}), path, compression="zstd")
    assert path.stat().st_size < 5000
    code = (
        "import resource, sys, pyarrow, pyarrow.parquet\n"
        "from mmcli.data.sources.sources import open_sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(len(item.value['text']) for item in open_sources([sys.argv[1]]).records()))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    length, grown = map(int, done.stdout.split())
    assert length == 600_000_000
    assert grown < 400  # MB


def test_parquet_that_claims_more_rows_than_a_file_can_hold_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    monkeypatch.setattr(tables, "FREE_ROWS", 1000)
    monkeypatch.setattr(tables, "MOST_RATIO", 10)
    parquet.write_table(pyarrow.table({"text": pyarrow.nulls(1_000_000)}), path)
    (item,) = open_sources([str(path)]).records()
    assert isinstance(item, Rejected) and "rows for each byte" in item.reason


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"text {n}" for n in range(700)], "none": pyarrow.nulls(700)})
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as file:
        file.write_table(table, max_chunksize=300)
    for name in ("file.arrow", "s.arrow"):
        told: list[int] = []
        sources = open_sources([str(tmp_path / name)])
        items = list(sources.records(told.append))
        assert [item.value for item in items if isinstance(item, Record)] == [{"text": f"text {n}"} for n in range(700)]
        assert sum(told) <= sources.size
    content = (tmp_path / "s.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(content[: len(content) * 3 // 4])
    *kept, last = open_sources([str(tmp_path / "cut.arrow")]).records()
    assert len(kept) >= 300 and isinstance(last, Rejected) and last.reason.startswith("the Arrow data is damaged")
