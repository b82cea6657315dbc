from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from mmcli.data.encode.texts import EvenSample
from mmcli.data.record import Record
from mmcli.data.records.kinds import as_text
from mmcli.data.sources.sources import open_sources

COUNT = 20_000


def taken(path: Path, most: float) -> list[int]:
    """Numbers of the records that are taken."""
    sources = open_sources([str(path)])
    even = EvenSample(sources.total, most)
    read = 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count

    records = (item for item in sources.records(on_bytes) if isinstance(item, Record))
    return [number for number, record in enumerate(records) if even.takes(as_text(record), read)]


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"a.{request.param}"
    noise = random.Random(0)
    rows = [{"text": f"{number:06} {noise.randbytes(100).hex()}"} for number in range(COUNT)]
    if request.param == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def test_all_is_taken_where_it_is_little(corpus: Path) -> None:
    assert taken(corpus, 50e6) == list(range(COUNT))


def test_a_part_is_taken_from_everywhere(corpus: Path) -> None:
    found = taken(corpus, 500_000)
    assert found == taken(corpus, 500_000)
    assert len(found) * 207 == pytest.approx(500_000, rel=0.05)
    tenths = [number * 10 // COUNT for number in found]
    expected = len(found) / 10
    assert all(0.5 * expected < tenths.count(tenth) < 1.5 * expected for tenth in range(10))


def test_data_of_unknown_size_is_taken_from_the_beginning() -> None:
    even = EvenSample(open_sources(["demo"]).total, 10)
    assert [even.takes("12345", 0) for _ in range(4)] == [True, True, False, False]
    assert (even.taken, even.skipped) == (10, 2)
