from __future__ import annotations

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest
import zstandard

from mmcli.data.record import Record, Rejected
from mmcli.data.records.kinds import kind_of
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError


def write(path: Path, content: str = '{"text": "hello"}\n') -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def texts(*names: str) -> list[str]:
    items = list(open_sources(names).records())
    assert all(isinstance(item, Record) for item in items)
    return [item.value["text"] for item in items if isinstance(item, Record)]


def test_folder_is_read_deep_and_sorted_without_hidden_and_unknown_names(tmp_path: Path) -> None:
    for number, name in enumerate(["b/z.jsonl", "b/a.txt", "a.md", "c.csv", "skip.py", ".hidden.txt", ".git/x.txt"]):
        write(tmp_path / name, f"text\n{number}\n" if name.endswith("csv") else "")
    write(tmp_path / "a.md", "markdown")
    write(tmp_path / "b/a.txt", "plain")
    write(tmp_path / "b/z.jsonl")
    sources = open_sources([str(tmp_path)])
    assert [file.path.relative_to(tmp_path).as_posix() for file in sources.files] == [
        "a.md",
        "b/a.txt",
        "b/z.jsonl",
        "c.csv",
    ]
    assert texts(str(tmp_path)) == ["markdown", "plain", "hello", "3"]
    assert sources.size == sum(os.path.getsize(file.path) for file in sources.files)


def test_glob_is_sorted_and_recursive(tmp_path: Path) -> None:
    for name in ("2.txt", "1.txt", "deep/0.txt", "1.py"):
        write(tmp_path / name, name)
    assert texts(str(tmp_path / "*.*")) == ["1.txt", "2.txt"]
    assert texts(str(tmp_path / "**/*.txt")) == ["1.txt", "2.txt", "deep/0.txt"]


def test_arguments_keep_their_order(tmp_path: Path) -> None:
    second, first = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.txt", "a")
    assert texts(second, first) == ["b", "a"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "one\ntwo\n"),
        ("t.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
        ("t.json", '[{"text": "one"},\n{"text": "two"}]'),
        ("t.csv", "text\none\ntwo\n"),
    ],
)
def test_compressed_files_read_as_plain_ones(tmp_path: Path, ending: str, name: str, content: str) -> None:
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / (name + ending)
    path.write_bytes(pack(content.encode()))
    assert texts(str(path)) == ["one", "two"]


def test_several_zstd_frames_are_one_text(tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(text) for text in (b"one\ntw", b"o\nthree\n")]
    path = tmp_path / "t.txt.zst"
    path.write_bytes(b"".join(frames))
    assert texts(str(path)) == ["one", "two", "three"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_cut_off_compressed_file_keeps_what_comes_before_and_says_so(tmp_path: Path, ending: str) -> None:
    lines = "".join(f"line {number} {os.urandom(40).hex()}\n" for number in range(20_000))
    packed = gzip.compress(lines.encode()) if ending == ".gz" else zstandard.ZstdCompressor().compress(lines.encode())
    path = tmp_path / f"t.txt{ending}"
    path.write_bytes(packed[: len(packed) // 2])
    *kept, last = open_sources([str(path)]).records()
    assert len(kept) > 5000
    assert all(isinstance(item, Record) for item in kept)
    assert isinstance(last, Rejected)
    assert last.reason.startswith("the compressed data is damaged")
    assert last.line == len(kept) + 1


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_file_that_is_not_what_its_ending_says(tmp_path: Path, ending: str) -> None:
    items = list(open_sources([write(tmp_path / f"t.txt{ending}", "plain text\n" * 9)]).records())
    assert len(items) == 1
    assert isinstance(items[0], Rejected)
    assert "damaged" in items[0].reason


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "there is no file or folder"),
        ("empty.txt", "", "is empty"),
        ("blank.jsonl", "\n  \n", "is empty"),
        ("program.py", "x = 1", "is of no known format"),
        ("noending", "x", "is of no known format"),
        ("*.txt", None, "matches no file"),
        ("hf:someone", None, "names no data set"),
    ],
)
def test_names_that_give_no_data(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    if content is not None:
        write(tmp_path / name, content)
    argument = name if name.startswith("hf:") else str(tmp_path / name)
    with pytest.raises(UserError) as caught:
        open_sources([argument])
    assert says in caught.value.what
    assert name in caught.value.what
    assert caught.value.fix


def test_folders_and_patterns_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no data file"):
        open_sources([str(tmp_path)])
    write(tmp_path / "a.py", "x")
    with pytest.raises(UserError, match="matches 1 files, none of a known format"):
        open_sources([str(tmp_path / "*")])
    with pytest.raises(UserError, match="no data is named"):
        open_sources([])


def test_empty_file_in_a_folder_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / "b.txt", "")
    kept, rejected = open_sources([str(tmp_path)]).records()
    assert isinstance(kept, Record)
    assert isinstance(rejected, Rejected)
    assert (rejected.file, rejected.reason) == (str(tmp_path / "b.txt"), "the file is empty")


CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})


def test_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.jsonl", CHAT + "\n")
    with pytest.raises(UserError) as caught:
        open_sources([path])
    assert f"{path} holds conversations" in caught.value.what
    assert "needs plain text" in caught.value.what
    assert "mmcli sft" in caught.value.fix
    assert len(list(open_sources([path], kind="chat").records())) == 1


def test_folder_of_another_kind_is_refused_but_a_mixed_one_is_not(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", CHAT + "\n")
    with pytest.raises(UserError, match="holds conversations"):
        open_sources([str(tmp_path)])
    write(tmp_path / "text.jsonl")
    assert len(list(open_sources([str(tmp_path)]).records())) == 2


def test_fingerprint_is_of_content_and_order_alone(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "a"), write(tmp_path / "b.txt", "b")
    before = open_sources([a, b]).fingerprint
    os.utime(a, (1, 1))
    assert open_sources([a, b]).fingerprint == before
    moved = [write(tmp_path / "x/c.txt", "a"), write(tmp_path / "x/d.txt", "b")]
    assert open_sources(moved).fingerprint == before
    assert open_sources([b, a]).fingerprint != before
    write(tmp_path / "a.txt", "A")
    assert open_sources([a, b]).fingerprint != before


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    sources = open_sources([path])
    sources.check_unchanged()
    write(tmp_path / "a.txt", "more")
    with pytest.raises(UserError, match="changed while it was read"):
        sources.check_unchanged()
    os.unlink(path)
    with pytest.raises(UserError, match="changed while it was read"):
        sources.check_unchanged()


def test_describe_says_what_is_read_and_how(tmp_path: Path) -> None:
    lines, prose = write(tmp_path / "names.txt", "a\nb\n"), write(tmp_path / "prose.txt", "a\n\nb\n")
    assert open_sources([lines]).describe == "names.txt (4 B, a document a line)"
    assert "cut at blank lines" in open_sources([prose]).describe
    for number in range(4):
        write(tmp_path / f"more/{number}.jsonl", '{"text": "a"}\n' * 2)
    assert open_sources([str(tmp_path / "more")]).describe == "4 files (112 B; 4 as a record a line)"


def test_bytes_read_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "some words\n" * 100_000)
    told: list[int] = []
    assert len(list(open_sources([path]).records(told.append))) == 100_000
    assert sum(told) == os.path.getsize(path)
    assert len([count for count in told if count]) > 2


def test_demo_gives_what_the_stage_needs_beside_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "mine")
    sources = open_sources(["demo", path])
    items = list(itertools.islice(sources.records(), 50))
    assert all(isinstance(item, Record) and kind_of(item.value) == "text" for item in items)
    assert [(item.file, item.line) for item in items[:2]] == [("demo", 1), ("demo", 2)]
    assert sources.describe == "the built-in corpus, a.txt (4 B, a document a line)"
    kinds: list[str] = ["text", "chat", "preference"]
    for kind in kinds[1:]:
        first = next(open_sources(["demo"], kind=kind).records())
        assert isinstance(first, Record)
        assert kind_of(first.value) == kind
    prints = [open_sources(["demo"], kind=kind, seed=seed).fingerprint for kind in kinds for seed in (0, 1)]
    assert len({*prints, sources.fingerprint}) == 7


def test_a_folder_named_demo_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "demo/a.txt", "mine")
    monkeypatch.chdir(tmp_path)
    assert texts("./demo") == ["mine"]
