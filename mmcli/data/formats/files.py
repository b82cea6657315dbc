"""Data files: how each file is read, and its records.

Known endings: see `find.py`. JSON is told from JSONL by looking, not by the name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmcli.data.formats.find import TABLES, ending_of, find_files
from mmcli.data.formats.lines import (
    HEAD,
    MAX_LINE,
    DamagedError,
    OnBytes,
    choose_layout,
    open_text,
    read_chunks,
    read_lines,
    records_by_line,
)
from mmcli.data.formats.structured import IsRecord, records_of_array, records_of_csv, records_of_object
from mmcli.data.formats.tables import count_rows, records_of_table
from mmcli.data.formats.text import (
    MAX_DOCUMENT,
    PARAGRAPHS_TARGET,
    choose_cut,
    documents_by_line,
    documents_by_paragraph,
)
from mmcli.data.record import Record, Rejected, reject
from mmcli.errors import UserError
from mmcli.files import write_json

LARGE = 8 * 2**20  # bytes; what is smaller is read in no time
SETTLED_NS = 2_000_000_000  # a file that changed a moment ago may change again within the same tick of its clock

HOW = {
    "lines": "a document a line",
    "paragraphs": f"one document, cut at blank lines about every {PARAGRAPHS_TARGET:,} characters",
    "jsonl": "a record a line",
    "array": "an array of records",
    "object": "one object",
    **dict.fromkeys(("csv", "tsv", "parquet", "arrow"), "a record a row"),
}


@dataclass(frozen=True)
class DataFile:
    """One file: its path, how it is read, its size in bytes and time of change, and if the person named it itself."""

    path: Path
    how: str
    size: int
    modified_ns: int
    named: bool

    @property
    def name(self) -> str:
        return str(self.path)

    def check_unchanged(self) -> None:
        """Refuse a file that changed since it was opened.

        Raises:
            UserError: it is gone, or has another size or time.
        """
        try:
            stat = self.path.stat()
        except OSError:
            stat = None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (self.size, self.modified_ns):
            raise UserError(f"{self.name} changed while it was read", "start again once nothing writes to it")


def open_files(name: str) -> tuple[tuple[DataFile, ...], dict[str, int]]:
    """(the files that one argument names, in order; how many others were left out, by reason).

    Raises:
        UserError: it names nothing; a file named by itself is empty, no file at all, or of an ending that is not
            known.
    """
    found = find_files(name)
    return tuple(_look(path, found.named) for path in found.paths), found.left_out


def _look(path: Path, named: bool) -> DataFile:
    """Choose how a file is read, by its ending and its first million characters."""
    try:
        stat = path.stat()
        is_empty, how = _is_empty_and_how(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", "make it readable, or leave it out") from None
    if named and is_empty:
        raise UserError(f"{path} is empty", "give files that are not empty")
    return DataFile(path, how, stat.st_size, stat.st_mtime_ns, named)


def _is_empty_and_how(path: Path) -> tuple[bool, str]:
    ending = ending_of(path)
    if path.suffix.lower() in TABLES:
        how = path.suffix.lower().removeprefix(".")
        return not path.stat().st_size or count_rows(path) == 0, how
    head = _head(path)
    if ending == ".txt":
        how = choose_cut(head)
    elif ending == ".md":
        how = "paragraphs"
    elif ending in (".csv", ".tsv"):
        how = ending.removeprefix(".")
    else:
        layout = choose_layout(head, named_lines=ending in (".jsonl", ".ndjson"))
        how = "jsonl" if layout == "lines" else layout
    return not head.strip(), how


def _head(path: Path) -> str:
    """The first million characters; fewer where the file is damaged, which reading will tell."""
    with open_text(path) as stream:
        return next(read_chunks(stream, HEAD), "") or stream.damage or ""


def read_file(file: DataFile, is_record: IsRecord, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
    """The records of one file; a damaged or empty file ends in a `Rejected`.

    Args:
        is_record: tells a record from a wrapper around records, where a JSON file is one object.
        on_bytes: is called with the counts of the file's own bytes as they are read.
    """
    line, count = 0, 0
    try:
        for item in _items(file, is_record, on_bytes):
            line, count = item.line, count + 1
            yield item
    except DamagedError as error:
        yield reject(file.name, line + 1, str(error))
        return
    if not count:
        yield reject(file.name, 1, "the file is empty")


def _items(file: DataFile, is_record: IsRecord, on_bytes: OnBytes | None) -> Iterator[Record | Rejected]:
    if file.how in ("parquet", "arrow"):
        yield from records_of_table(file.name, file.path, file.size, on_bytes)
        return
    with open_text(file.path, on_bytes) as stream:
        if file.how == "array":
            yield from records_of_array(file.name, read_chunks(stream))
        elif file.how == "object":
            text = stream.take(stream.read, MAX_LINE)
            if stream.take(stream.read, 1):
                yield reject(file.name, 1, f"an object is too long: more than {MAX_LINE:,} characters", text)
            else:
                yield from records_of_object(file.name, text, is_record)
        else:
            limit = MAX_DOCUMENT if file.how in ("lines", "paragraphs") else MAX_LINE
            yield from _LINE_READERS[file.how](file.name, read_lines(stream, limit))
        stream.check_whole()


_LINE_READERS: dict[str, Callable[..., Iterator[Record | Rejected]]] = {
    "lines": documents_by_line,
    "paragraphs": documents_by_paragraph,
    "jsonl": records_by_line,
    "csv": records_of_csv,
    "tsv": functools.partial(records_of_csv, delimiter="\t"),
}


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FileHashes:
    """`hash_file`, with the hashes of large files kept in a JSON file.

    A kept hash counts while size, inode, and the times of the last change of content and of entry are all the same;
    the latter cannot be set by a program, so an edit never goes unseen. Windows has no such time and keeps nothing.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        self._kept: dict[str, list[object]] = kept if isinstance(kept, dict) else {}

    def __call__(self, path: Path) -> str:
        state = _state(path)
        name = str(path.resolve())
        known = self._kept.get(name)
        if state is not None and isinstance(known, list) and known[:-1] == state:
            return str(known[-1])
        found = hash_file(path)
        if state is not None and state == _state(path):
            self._kept[name] = [*state, found]
            self._place.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._place, self._kept)
        return found


def _state(path: Path) -> list[object] | None:
    """The values by which two states of a large file differ; None where that cannot be known."""
    found = path.stat()
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    if os.name != "posix" or found.st_size < LARGE or time.time_ns() - newest < SETTLED_NS:
        return None
    return [found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
