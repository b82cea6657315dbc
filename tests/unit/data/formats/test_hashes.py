from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from mmcli.data.formats import files as file_hashes
from mmcli.data.formats.files import FileHashes, hash_file


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large and as settled."""
    monkeypatch.setattr(file_hashes, "LARGE", 10)
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 0)
    path = tmp_path / "data.txt"
    path.write_bytes(b"x" * 1000)
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(file_hashes, "hash_file", counted)
    return read


def test_an_untouched_file_is_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    expected = hashlib.sha256(large.read_bytes()).hexdigest()
    assert [FileHashes(large.parent / "c" / "files.json")(large) for _ in range(3)] == [expected] * 3
    assert read == [large]


def test_an_edit_that_hides_its_time_is_seen(large: Path) -> None:
    hashes = FileHashes(large.parent / "files.json")
    before, found = hashes(large), large.stat()
    time.sleep(0.02)
    large.write_bytes(b"y" * 1000)
    os.utime(large, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert FileHashes(large.parent / "files.json")(large) == hash_file(large) != before


def test_small_files_and_fresh_ones_are_always_read(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads(monkeypatch)
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 60 * 10**9)
    for _ in range(2):
        FileHashes(large.parent / "files.json")(large)
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 0)
    monkeypatch.setattr(file_hashes, "LARGE", 5000)
    for _ in range(2):
        FileHashes(large.parent / "files.json")(large)
    assert len(read) == 4 and not (large.parent / "files.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "null"])
def test_a_broken_list_is_made_anew(large: Path, content: str) -> None:
    place = large.parent / "files.json"
    place.write_text(content.replace("x", str(large)))
    assert FileHashes(place)(large) == hash_file(large)
    assert str(large) in place.read_text()
