"""What a person names with `--data`: the built-in corpus, files, folders and globs, opened as streams of records.

Known endings: `.txt`, `.md`, `.jsonl`, `.json`, `.csv`, each also with `.gz` or `.zst`. Folders are read with all
their folders, sorted by name, hidden names left out. JSON is told from JSONL by looking, not by the name.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcli.data.documents import MAX_DOCUMENT, PARAGRAPHS_TARGET, choose_cut, documents_by_line, documents_by_paragraph
from mmcli.data.lines import (
    COMPRESSED,
    HEAD,
    MAX_LINE,
    DamagedError,
    OnBytes,
    open_text,
    read_chunks,
    read_lines,
    reject,
)
from mmcli.data.records import KIND_NAMES, KIND_STAGES, Kind, Record, Rejected, kind_of
from mmcli.data.structured import choose_layout, records_by_line, records_of_array, records_of_csv, records_of_object
from mmcli.errors import UserError

ENDINGS = (".txt", ".md", ".jsonl", ".json", ".csv")
SUPPORTED = f"demo, or files that end in {', '.join(ENDINGS)}, each also with .gz or .zst"
DEMO = "demo"
PEEK = 20  # records of a file that tell its kind
READING = 1  # version of the rules by which files become records; part of the fingerprint

HOW = {
    "lines": "a document a line",
    "paragraphs": f"one document, cut at blank lines about every {PARAGRAPHS_TARGET:,} characters",
    "jsonl": "a record a line",
    "array": "an array of records",
    "object": "one object",
    "csv": "a record a row",
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


@dataclass(frozen=True)
class Sources:
    """Data to read: files in order, and the built-in corpus where `demo` was named."""

    files: tuple[DataFile, ...]
    demo: bool = False
    kind: Kind = "text"
    strict: bool = False
    seed: int = 0  # of the built-in corpus

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over how each file is read and its content, in order; names and times do not matter."""
        digest = hashlib.sha256(f"reading {READING}\n".encode())
        if self.demo:
            from mmcli.data import demo

            digest.update(f"demo {self.kind} {demo.fingerprint(self.seed)}\n".encode())
        for file in self.files:
            with file.path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.how} {content}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files on disk."""
        return sum(file.size for file in self.files)

    @property
    def named(self) -> frozenset[str]:
        """The files that the person named one by one."""
        return frozenset(file.name for file in self.files if file.named)

    @property
    def describe(self) -> str:
        """One line for the person: what is read, how large it is, and how it is cut."""
        parts = ["the built-in corpus"] if self.demo else []
        if len(self.files) <= 3:
            parts += [f"{file.path.name} ({_size(file.size)}, {HOW[file.how]})" for file in self.files]
        else:
            ways = Counter(file.how for file in self.files)
            each = "; ".join(f"{count:,} as {HOW[how]}" for how, count in ways.most_common())
            parts.append(f"{len(self.files):,} files ({_size(self.size)}; {each})")
        return ", ".join(parts)

    def records(self, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
        """Every record in order, the unreadable ones as `Rejected`; `on_bytes` is told the bytes of files as read."""
        if self.demo:
            yield from _demo_records(self.kind, self.seed)
        for file in self.files:
            yield from _read(file, on_bytes)

    def check_unchanged(self) -> None:
        """Refuse files that changed since they were opened.

        Raises:
            UserError: a file is gone, or has another size or time.
        """
        for file in self.files:
            try:
                stat = file.path.stat()
            except OSError:
                stat = None
            if stat is None or (stat.st_size, stat.st_mtime_ns) != (file.size, file.modified_ns):
                raise UserError(f"{file.name} changed while it was read", "start again once nothing writes to it")


def open_sources(data: Sequence[str], *, kind: Kind = "text", strict: bool = False, seed: int = 0) -> Sources:
    """Find and look at everything that `data` names.

    Args:
        data: each `demo`, a file, a folder or a glob. (`./demo` is a file or folder of that name.)
        kind: what the stage needs; `demo` has all kinds, a file has one.
        strict: refuse the data at its first unusable record.
        seed: of the built-in corpus.

    Raises:
        UserError: nothing is named; a name matches nothing; a file named by itself is empty, of an ending that is
            not known, or of another kind than `kind`.
    """
    if not data:
        raise UserError("no data is named", f"give --data: {SUPPORTED}")
    demo = False
    files: list[DataFile] = []
    for name in data:
        if name == DEMO:
            demo = True
        else:
            files += [_look(path, named) for path, named in _find(name)]
    sources = Sources(tuple(files), demo, kind, strict, seed)
    _check_kinds(files, kind)
    return sources


def _find(name: str) -> Iterator[tuple[Path, bool]]:
    """(path, was it named itself) of what one argument names."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(item for item in path.rglob("*") if _known(item) and not _hidden(item, path) and item.is_file())
        if not inside:
            raise UserError(f"the folder {name} has no data file in it", f"put data there: {SUPPORTED}")
        yield from ((item, False) for item in inside)
    elif path.exists():
        if not _known(path):
            raise UserError(f"{name} is of no known format", f"give {SUPPORTED}")
        yield path, True
    elif glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        matches = [match for match in matches if match.is_file()]
        if not any(_known(match) for match in matches):
            count = f"{len(matches):,} files, none of a known format" if matches else "no file"
            raise UserError(f"the pattern {name} matches {count}", f"give {SUPPORTED}")
        yield from ((match, False) for match in matches if _known(match))
    elif name.startswith("hf:"):
        raise UserError(f"{name}: data sets of the Hugging Face hub are not read yet", f"give {SUPPORTED}")
    else:
        raise UserError(f"there is no file or folder {name}", "give --data a path that exists, or demo")


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _known(path: Path) -> bool:
    return _ending(path) in ENDINGS


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _look(path: Path, named: bool) -> DataFile:
    """Choose how a file is read, by its ending and its first million characters."""
    try:
        stat = path.stat()
        head = _head(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", "make it readable, or leave it out") from None
    if named and not head.strip():
        raise UserError(f"{path} is empty", "give --data files that are not empty")
    ending = _ending(path)
    if ending == ".txt":
        how: str = choose_cut(head)
    elif ending == ".md":
        how = "paragraphs"
    elif ending == ".csv":
        how = "csv"
    else:
        layout = choose_layout(head, named_lines=ending == ".jsonl")
        how = "jsonl" if layout == "lines" else layout
    return DataFile(path, how, stat.st_size, stat.st_mtime_ns, named)


def _head(path: Path) -> str:
    """The first million characters; fewer where the file is damaged, which reading will tell."""
    try:
        with open_text(path) as stream:
            return next(read_chunks(stream, HEAD), "")
    except DamagedError:
        return "damaged"


def _read(file: DataFile, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
    """The records of one file; a damaged or empty file ends in a `Rejected`."""
    line, count = 0, 0
    try:
        with open_text(file.path, on_bytes) as stream:
            if file.how == "array":
                records = records_of_array(file.name, read_chunks(stream))
            elif file.how == "object":
                text = stream.read(MAX_LINE)
                records = records_of_object(file.name, text)
                if stream.read(1):
                    records = iter(
                        [reject(file.name, 1, f"an object is too long: more than {MAX_LINE:,} characters", text)]
                    )
            else:
                limit = MAX_DOCUMENT if file.how in ("lines", "paragraphs") else MAX_LINE
                records = _LINE_READERS[file.how](file.name, read_lines(stream, limit))
            for item in records:
                line, count = item.line, count + 1
                yield item
    except DamagedError as error:
        yield reject(file.name, line + 1, str(error))
        return
    if not count:
        yield reject(file.name, 1, "the file is empty")


_LINE_READERS: dict[str, Callable[..., Iterator[Record | Rejected]]] = {
    "lines": documents_by_line,
    "paragraphs": documents_by_paragraph,
    "jsonl": records_by_line,
    "csv": records_of_csv,
}


def _check_kinds(files: Sequence[DataFile], kind: Kind) -> None:
    """Refuse a named file of another kind, and folders and globs in which no file is of the kind needed.

    A file of another kind among good ones in a folder is no error here: its records are rejected one by one.
    """
    refusals = []
    for file in files:
        if refusal := _other_kind(file, kind):
            if file.named:
                raise refusal
            refusals.append(refusal)
    if refusals and len(refusals) == len(files):
        raise refusals[0]


def _other_kind(file: DataFile, kind: Kind) -> UserError | None:
    """The error for a file whose first records are all of other known kinds."""
    first = [item for item in itertools.islice(_read(file), PEEK) if isinstance(item, Record)]
    kinds = Counter(kind_of(item.value) for item in first)
    if not kinds or kinds[kind] or kinds["unknown"]:
        return None
    found = kinds.most_common(1)[0][0]
    what = f"{file.name} holds {KIND_NAMES[found]}, and this stage needs {KIND_NAMES[kind]}"
    return UserError(what, f"train on it with `{KIND_STAGES[found]}`, or give --data a file of {KIND_NAMES[kind]}")


def _demo_records(kind: Kind, seed: int) -> Iterator[Record]:
    from mmcli.data import demo

    values: Iterator[dict[str, Any]]
    if kind == "text":
        values = ({"text": text} for text in demo.documents(seed))
    elif kind == "chat":
        values = demo.conversations(seed)
    else:
        values = demo.preferences(seed)
    for number, value in enumerate(values, 1):
        yield Record(DEMO, number, value)


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"
