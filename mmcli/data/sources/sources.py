"""What a person names with `--data`: the built-in corpus, files, folders, globs and data sets of the Hugging Face hub,
each with a weight or without, opened as one stream of records.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcli.data.formats.files import SUPPORTED, DataFile, read_file
from mmcli.data.formats.lines import OnBytes
from mmcli.data.records.kinds import KIND_NAMES, KIND_STAGES, Kind, Record, Rejected, kind_of
from mmcli.data.sources.columns import parse_columns, renamed
from mmcli.data.sources.hashes import hash_file
from mmcli.data.sources.source import DEMO, Part, describe_files, describe_part, open_part
from mmcli.errors import UserError

PEEK = 20  # records of a file that tell its kind
READING = 2  # version of the rules by which files become records; part of the fingerprint


@dataclass(frozen=True)
class Sources:
    """Data to read: parts in the order in which they were named.

    `columns` are (field of the record, field of the data); `most` bounds the records that are read.
    """

    parts: tuple[Part, ...]
    kind: Kind = "text"
    strict: bool = False
    seed: int = 0  # of the built-in corpus
    columns: tuple[tuple[str, str], ...] = ()
    most: int | None = None

    @property
    def files(self) -> tuple[DataFile, ...]:
        return tuple(file for part in self.parts for file in part.files)

    @property
    def mixture(self) -> tuple[tuple[str, float], ...] | None:
        """(name, share of the tokens) of each part, the shares adding up to 1; None: no weights were given."""
        weights = [part.weight or 0.0 for part in self.parts]
        if self.parts[0].weight is None:
            return None
        return tuple((part.name, weight / sum(weights)) for part, weight in zip(self.parts, weights, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over how each part is read and its content, in order; names, times and weights do not matter."""
        return self.fingerprint_by(hash_file)

    def fingerprint_by(self, content_of: Callable[[Path], str]) -> str:
        """The fingerprint, with the SHA-256 (hex) of each file's bytes as `content_of` gives it."""
        digest = hashlib.sha256(f"reading {READING} {self.columns} {self.most}\n".encode())
        for part in self.parts:
            digest.update(b"part\n")
            if part.demo:
                from mmcli.data import demo

                digest.update(f"demo {self.kind} {demo.fingerprint(self.seed)}\n".encode())
            if part.hub is not None:
                digest.update(f"hub {part.hub.name} {part.hub.revision}\n".encode())
            for file in part.files:
                digest.update(f"{file.how} {content_of(file.path)}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files on disk."""
        return sum(file.size for file in self.files)

    @property
    def total(self) -> float | None:
        """Bytes that a reader will be told of; None where other parts than files make that meaningless."""
        return float(self.size) if all(part.files for part in self.parts) and self.most is None else None

    @property
    def named(self) -> frozenset[str]:
        """The files and data sets that the person named one by one."""
        hubs = {part.hub.name for part in self.parts if part.hub is not None}
        return frozenset(hubs | {file.name for file in self.files if file.named})

    @property
    def describe(self) -> str:
        """One line for the person: what is read, how large it is, how it is cut, and its share."""
        if self.mixture is None and len(self.files) > 3:
            others = [describe_part(part) for part in self.parts if not part.files]
            return ", ".join([*others, describe_files(self.files)])
        shares = ["" if share is None else f": {share:.1%}" for share in self._shares]
        return ", ".join(describe_part(part) + share for part, share in zip(self.parts, shares, strict=True))

    @property
    def _shares(self) -> list[float | None]:
        return [None] * len(self.parts) if self.mixture is None else [share for _, share in self.mixture]

    def first(self, most: int) -> Sources:
        """The beginning of this data: its first `most` records."""
        return replace(self, most=most)

    def records(self, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
        """Every record in order, the unreadable ones as `Rejected`; `on_bytes` is told the bytes of files as read."""
        return (item for _, item in self.numbered(on_bytes))

    def numbered(self, on_bytes: OnBytes | None = None) -> Iterator[tuple[int, Record | Rejected]]:
        """`records`, each with the number of its part."""
        every = ((number, item) for number, part in enumerate(self.parts) for item in self._read(part, on_bytes))
        return itertools.islice(every, self.most)

    def _read(self, part: Part, on_bytes: OnBytes | None) -> Iterator[Record | Rejected]:
        if part.demo:
            yield from _demo_records(self.kind, self.seed)
            return
        items: Iterator[Record | Rejected]
        items = part.hub.records() if part.hub is not None else _records_of_files(part.files, on_bytes)
        yield from renamed(items, self.columns) if self.columns else items

    def check_unchanged(self) -> None:
        """Refuse files that changed since they were opened.

        Raises:
            UserError: a file is gone, or has another size or time.
        """
        for file in self.files:
            file.check_unchanged()

    def refuse_weights(self, where: str) -> None:
        """Refuse weights where they mean nothing.

        Args:
            where: what takes the data, as in "a tokenizer".

        Raises:
            UserError: weights were given.
        """
        if self.mixture is not None:
            name, _ = self.mixture[0]
            raise UserError(f"{name} has a weight, but {where} takes all of the data", f"give it as {name}")


def open_sources(
    data: Sequence[str], *, kind: Kind = "text", strict: bool = False, seed: int = 0, columns: Sequence[str] = ()
) -> Sources:
    """Find and look at everything that `data` names.

    Args:
        data: each `demo`, a file, a folder, a glob or `hf:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]`, and `:WEIGHT` after
            all of them or none. (`./demo` is a file or folder of that name.)
        kind: what the stage needs; `demo` has all kinds, a file has one.
        strict: refuse the data at its first unusable record.
        seed: of the built-in corpus.
        columns: `text=body`: a record's `text` is what the data calls `body`; see `columns.py`.

    Raises:
        UserError: nothing is named; a name matches nothing; a file named by itself is empty, of an ending that is
            not known, or of another kind than `kind`; weights that are not positive or not for all; a column that no
            record has.
    """
    if not data:
        raise UserError("no data is named", f"give --data: {SUPPORTED}")
    parts = tuple(open_part(name) for name in data)
    without = [part.name for part in parts if part.weight is None]
    if 0 < len(without) < len(parts):
        raise UserError(f"{without[0]} has no weight, and others have", f"give {without[0]}:WEIGHT, or no weights")
    sources = Sources(parts, kind, strict, seed, parse_columns(columns))
    _check_kinds(sources)
    return sources


def _records_of_files(files: Sequence[DataFile], on_bytes: OnBytes | None) -> Iterator[Record | Rejected]:
    for file in files:
        yield from read_file(file, on_bytes)


def _check_kinds(sources: Sources) -> None:
    """Refuse a named file of another kind, folders and globs in which no file is of the kind needed, and columns that
    no file has.

    A file of another kind among good ones in a folder is no error here: its records are rejected one by one.
    """
    refusals, count = [], 0
    missing = {old for _, old in sources.columns}
    fields: dict[str, None] = {}
    for name, named, items in _beginnings(sources.parts):
        first = [item for item in itertools.islice(items, PEEK) if isinstance(item, Record)]
        fields |= {field: None for item in first for field in item.value}
        missing -= {field for item in first for field in item.value}
        values = [item.value for item in renamed(first, sources.columns) if isinstance(item, Record)]
        count += 1
        if refusal := _other_kind(name, values, sources.kind):
            if named:
                raise refusal
            refusals.append(refusal)
    if missing and fields:
        known = ", ".join(list(fields)[:8])
        raise UserError(f"the data has no field {', '.join(sorted(missing))}", f"give --columns one of: {known}")
    if refusals and len(refusals) == count:
        raise refusals[0]


def _beginnings(parts: Sequence[Part]) -> Iterator[tuple[str, bool, Iterator[Record | Rejected]]]:
    """(name, was it named itself, its records) of every file and data set."""
    for part in parts:
        if part.hub is not None:
            yield part.hub.name, True, part.hub.records()
        for file in part.files:
            yield file.name, file.named, read_file(file)


def _other_kind(name: str, values: Sequence[dict[str, Any]], kind: Kind) -> UserError | None:
    """The error for a file whose first records are all of other known kinds."""
    kinds = Counter(map(kind_of, values))
    if not kinds or kinds[kind] or kinds["unknown"]:
        return None
    found = kinds.most_common(1)[0][0]
    what = f"{name} holds {KIND_NAMES[found]}, and this stage needs {KIND_NAMES[kind]}"
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
