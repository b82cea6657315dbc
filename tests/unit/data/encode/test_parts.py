"""Large data is encoded a part at a time, by several ranks together, to the very bytes of encoding it at once."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.encode import parts
from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.lock import file_lock
from mmcli.ranks import Ranks
from mmcli.stage import Reporter, Silent
from mmcli.text.tokenizer import Tokenizer

FILES = ("rejected.jsonl", "tokens.bin", "offsets.bin", "hashes.bin", "meta.json")
BAD = "{ no JSON"


class Together(Ranks):
    """One of several ranks, each a thread of this process."""

    def __init__(self, rank: int, world: int, shared: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.world, self.local_world = rank, world, world
        self.told: tuple[tuple[ThreadPoolExecutor, Ranks], ...] = ()
        self.others: list[Future[None]] = []
        self._shared, self._meeting = shared, meeting

    def gather(self, value: Any) -> list[Any]:
        self._shared[self.rank] = value
        self._meeting.wait(30)
        found = json.loads(json.dumps(self._shared))
        self._meeting.wait(30)
        return list(found)

    def order(self, work: Any) -> bool:
        order = json.loads(json.dumps(work))["encode"]
        self.others = [pool.submit(parts.assist, order, rank) for pool, rank in self.told]
        return True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources of several files of 500 to 5,000 bytes, some of whose records are rejected; parts of 3,000 bytes."""
    monkeypatch.setattr(parts, "PART", 3000)
    for source, counts in (("a", (40, 5, 60, 1, 70, 9)), ("b", (30, 0, 66))):
        (tmp_path / source).mkdir()
        for number, count in enumerate(counts):
            texts = [f"the quick {source} {number} {i} fox " + "jumps " * (i % 7) for i in range(count)]
            lines = [json.dumps({"text": text}) for text in texts]
            bad = [BAD] * (number % 3) if count else [BAD] * 60
            (tmp_path / source / f"{number}.jsonl").write_text("\n".join([*lines[:3], *bad, *lines[3:]]) + "\n")
    return tmp_path


def make(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    strict: bool = False,
    report: Reporter | None = None,
    ranks: Ranks | None = None,
) -> TokenCache:
    """The cache in `folder/parts`, built in parts."""
    sources = open_sources([str(folder / "a"), str(folder / "b")], strict=strict)
    build = functools.partial(parts.build_in_parts, ranks=ranks or Ranks())
    quarantine = folder / "parts.jsonl"
    return TokenCache.build_or_open(
        folder / "parts", sources, tokenizer, build=build, quarantine=quarantine, report=report
    )


def at_once(folder: Path, tokenizer: Tokenizer) -> TokenCache:
    sources = open_sources([str(folder / "a"), str(folder / "b")])
    return TokenCache.build_or_open(folder / "once", sources, tokenizer, quarantine=folder / "once.jsonl")


def assert_same(folder: Path, cache: TokenCache, wanted: TokenCache) -> None:
    for name in FILES:
        assert (cache.folder / name).read_bytes() == (wanted.folder / name).read_bytes(), name
    quarantined = (folder / f"{cache.folder.parent.name}.jsonl").read_bytes()
    assert quarantined == (folder / "once.jsonl").read_bytes() and quarantined
    assert [path.name for path in cache.folder.parent.iterdir()] == [cache.key]


def parts_encoded(monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> list[int]:
    """The numbers of the parts that are encoded from now on; the one `fails_at` is interrupted."""
    found: list[int] = []
    encode: Callable[..., None] = parts._encode_part

    def noted(job: parts.Job, number: int, *rest: Any) -> None:
        if len(found) == fails_at:
            raise KeyboardInterrupt
        found.append(number)
        encode(job, number, *rest)

    monkeypatch.setattr(parts, "_encode_part", noted)
    return found


def test_parts_are_whole_files_of_one_source_in_order(folder: Path) -> None:
    sources = open_sources([str(folder / "a"), str(folder / "b")])
    found = parts.cut(sources)
    assert len(found) > 4 and {part.source for part in found} == {0, 1}
    assert [file for part in found for file in part.data.files] == list(sources.files)
    assert all(part.data.size <= 3000 or len(part.data.files) == 1 for part in found)


def test_parts_joined_are_what_encoding_at_once_gives(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = at_once(folder, tokenizer)
    found = parts_encoded(monkeypatch)
    assert_same(folder, make(folder, tokenizer), wanted)
    assert sorted(found) == list(range(len(found))) and len(found) > 4
    assert wanted.sequences_by_source.tolist() == [185, 96] and wanted.tally.rejected > 60


def test_an_interrupted_build_goes_on_with_the_parts_that_it_has(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = at_once(folder, tokenizer)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        first = parts_encoded(patch, fails_at=3)
        make(folder, tokenizer)
    [kept] = (folder / "parts").glob("parts-*")
    assert sorted(path.name for path in kept.iterdir()) == sorted(map(str, first))
    damaged = kept / str(first[0]) / "tokens.bin"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    second = parts_encoded(monkeypatch)
    assert_same(folder, make(folder, tokenizer), wanted)
    assert set(first) & set(second) == {first[0]} and len(first) == 3


def test_parts_that_nobody_goes_on_with_are_removed(folder: Path, tokenizer: Tokenizer) -> None:
    old, new, held = ((folder / "parts" / f"parts-{name}") for name in ("old", "new", "held"))
    for place in (old, new, held):
        (place / "0").mkdir(parents=True)
        if place != new:
            os.utime(place, (1, 1))
    with file_lock(held.with_suffix(".lock")):
        make(folder, tokenizer)
    assert (old.exists(), new.exists(), held.exists()) == (False, True, True)


def test_data_without_a_usable_record_is_refused_and_quarantined(folder: Path, tokenizer: Tokenizer) -> None:
    for path in folder.glob("[ab]/*.jsonl"):
        path.write_text(f"{BAD}\n" * 300)
    with pytest.raises(UserError, match=r"a/0\.jsonl has no usable record: 300 rejected, the first at line 1"):
        make(folder, tokenizer)
    assert len((folder / "parts.jsonl").read_text().splitlines()) == 9 * 300


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode: Callable[..., Any] = parts.encode_into

    def changing(place: Path, part: Any, *rest: Any, **more: Any) -> Any:
        os.utime(part.files[0].path, (1, 1))
        return encode(place, part, *rest, **more)

    monkeypatch.setattr(parts, "encode_into", changing)
    with pytest.raises(UserError, match="changed while it was read"):
        make(folder, tokenizer)
    assert not any(path.name.isdecimal() for path in (folder / "parts").rglob("*"))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_parts(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """The cache is that of one process; a refusal has its two lines on rank 0, and the others go on waiting."""
    wanted = at_once(folder, tokenizer)
    found: dict[int, list[int]] = {rank: [] for rank in range(world)}
    encode: Callable[..., None] = parts._encode_parts

    def noted(job: parts.Job, own: Tokenizer, ranks: Ranks, report: Any) -> None:
        found[ranks.rank] = [job.missing[i] for i in range(ranks.rank, len(job.missing), ranks.world)]
        encode(job, own, ranks, report)

    monkeypatch.setattr(parts, "_encode_parts", noted)
    meeting, shared = threading.Barrier(world), [None] * world
    ranks = [Together(rank, world, shared, meeting) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        ranks[0].told = tuple((pool, rank) for rank in ranks[1:])
        assert_same(folder, make(folder, tokenizer, ranks=ranks[0]), wanted)
        for other in ranks[0].others:
            assert other.result(30) is None
        assert all(found.values()) and len({each for own in found.values() for each in own}) > 4
        shutil.rmtree(folder / "parts")
        with pytest.raises(UserError, match=r"a/1\.jsonl:4 not JSON.*\n.*strict"):
            make(folder, tokenizer, strict=True, ranks=ranks[0])
        for other in ranks[0].others:
            assert other.result(30) is None


def test_progress_counts_the_bytes_of_all_parts(folder: Path, tokenizer: Tokenizer) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.done: list[tuple[float, float | None]] = []

        def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
            self.done.append((done, total))

    told = Told()
    make(folder, tokenizer, report=told)
    size = sum(path.stat().st_size for path in folder.rglob("?.jsonl"))
    counts = [done for done, _ in told.done]
    assert {total for _, total in told.done} == {size}
    assert counts == sorted(counts) and counts[-1] == size and counts.count(size) == 1 and len(counts) > 4
