"""All that `--data` names, of one kind of record, opened as one stream: see `source.py` for what one argument is."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmcli.data.config import DataConfig
from mmcli.data.formats.files import DataFile, hash_file, read_file
from mmcli.data.formats.find import SUPPORTED, describe_left_out
from mmcli.data.formats.lines import OnBytes
from mmcli.data.record import Record, Rejected
from mmcli.data.records.kinds import UNKNOWN, all_kinds, find_kind, is_known, kind_of
from mmcli.data.sources.columns import check_columns, parse_columns, renamed
from mmcli.data.sources.source import DEMO, Source, describe_files, open_source
from mmcli.errors import UserError

MIXED = {"text": "chat", "chat": "text"}  # the kind of a stage, and what may be mixed with it
PEEK = 20  # records of a file that tell its kind
READING = 2  # version of the rules by which files become records; part of the fingerprint


@dataclass(frozen=True)
class Sources:
    """Data to read: sources in the order in which they were named.

    `columns` are (field of the record, field of the data); `most` bounds the records that are read of each.
    """

    members: tuple[Source, ...]
    kind: str = "text"  # the name of a record kind
    strict: bool = False
    seed: int = 0  # of the built-in corpus
    columns: tuple[tuple[str, str], ...] = ()
    most: int | None = None

    @property
    def files(self) -> tuple[DataFile, ...]:
        return tuple(file for source in self.members for file in source.files)

    @property
    def mixture(self) -> tuple[tuple[str, float], ...] | None:
        """(name, share of the tokens) of each source, the shares adding up to 1; None: no weights were given.

        A share that changes counts with its mean over the training.
        """
        shares = self._shares()
        if shares is None:
            return None
        return tuple((each.name, (a + b) / 2) for each, (a, b) in zip(self.members, shares, strict=True))

    @property
    def course(self) -> tuple[tuple[float, float], ...] | None:
        """(share at the first step, share at the last) of each source; None where no share changes."""
        shares = self._shares()
        return shares if shares is not None and any(start != end for start, end in shares) else None

    def _shares(self) -> tuple[tuple[float, float], ...] | None:
        weights = [source.weight for source in self.members if source.weight is not None]
        if not weights:
            return None
        starts, ends = sum(each.start for each in weights), sum(each.end for each in weights)
        return tuple((each.start / starts, each.end / ends) for each in weights)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over how each source is read and its content, in order; names, times and weights do not matter."""
        return self.fingerprint_by(hash_file)

    def fingerprint_by(self, content_of: Callable[[Path], str]) -> str:
        """The fingerprint, with the SHA-256 (hex) of each file's bytes as `content_of` gives it."""
        digest = hashlib.sha256(f"reading {READING} {self.columns} {self.most}\n".encode())
        for source in self.members:
            digest.update(b"part\n")
            if source.demo:
                from mmcli.data import demo

                part = f"{source.kind or self.kind}{f'/{source.topic}' if source.topic else ''}"
                digest.update(f"demo {part} {demo.fingerprint(self.seed)}\n".encode())
            if source.hub is not None:
                digest.update(f"hub {source.hub.name} {source.hub.revision}\n".encode())
            for file in source.files:
                digest.update(f"{file.how} {content_of(file.path)}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files on disk."""
        return sum(file.size for file in self.files)

    @property
    def total(self) -> float | None:
        """Bytes that will be read of the files; None where other sources than files make that meaningless."""
        return float(self.size) if all(each.files for each in self.members) and self.most is None else None

    @property
    def named(self) -> frozenset[str]:
        """The files and data sets that the person named one by one."""
        hubs = {each.hub.name for each in self.members if each.hub is not None}
        return frozenset(hubs | {file.name for file in self.files if file.named})

    @property
    def describe(self) -> str:
        """One line for the person: what is read, how large it is, how it is cut, and its share; what is left out."""
        left_out: Counter[str] = sum((Counter(each.left_out) for each in self.members), Counter())
        return self._describe_read() + describe_left_out(left_out, "; left out: ")

    def _describe_read(self) -> str:
        if self.mixture is not None:
            changes = self.course or [(0.0, 0.0)] * len(self.members)
            return ", ".join(
                f"{each.describe()}: {share:.1%}{describe_change(change)}"
                for each, (_, share), change in zip(self.members, self.mixture, changes, strict=True)
            )
        if len(self.files) > 3:
            others = [each.describe() for each in self.members if not each.files]
            return ", ".join([*others, describe_files(self.files)])
        return ", ".join(each.describe() for each in self.members)

    def first(self, most: int) -> Sources:
        """The beginning of this data: the first `most` records of each source."""
        return replace(self, most=most)

    def records(self, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
        """Every record in order, the unreadable ones as `Rejected`; `on_bytes` is called with counts of bytes read."""
        return (item for _, item in self.numbered(on_bytes))

    def numbered(self, on_bytes: OnBytes | None = None) -> Iterator[tuple[int, Record | Rejected]]:
        """`records`, each with the number of its source."""
        for number, each in enumerate(self.members):
            for item in itertools.islice(self._read(each, on_bytes), self.most):
                yield number, item

    def _read(self, source: Source, on_bytes: OnBytes | None) -> Iterator[Record | Rejected]:
        if source.demo:
            yield from _demo_records(source.kind or self.kind, self.seed, source.topic)
        for _, _, items in _streams(source, on_bytes):
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

    def refuse_course(self, where: str) -> None:
        """Refuse weights that change where there is no order of steps to change them over.

        Raises:
            UserError: a weight changes.
        """
        if self.course is not None:
            source = next(each for each in self.members if each.weight and each.weight.start != each.weight.end)
            what = f"{source.name} has the weight {source.weight}, and in {where} no weight can change"
            raise UserError(what, "give one number, or use mmcli pretrain or mmcli sft")


@dataclass(frozen=True)
class OpenedData:
    """The data of a stage, opened once: what it trains on, and the held-out data that was named, if any was."""

    config: DataConfig
    train: Sources
    val: Sources | None


def open_data(kind: str, data: DataConfig, *, mixed: bool = False, course: bool = False) -> OpenedData:
    """The sources that a stage's data names; this looks at the files' beginnings and reads no further.

    Args:
        mixed: see `open_sources`; the validation data of a mixture may be of either kind.
        course: weights may change over the training: the stage tells its `Batches` the number of steps.

    Raises:
        UserError: nothing there, data of another kind, or a weight that changes where none may.
    """
    strict, columns = data.strict, data.columns or ()
    train = open_sources(data.sources, kind=kind, strict=strict, columns=columns, mixed=mixed)
    if not course:
        train.refuse_course("this stage")
    if data.val is None:
        return OpenedData(data, train, None)
    if train.kind == kind:
        val = open_sources(data.val, kind=kind, strict=strict, columns=columns)
    else:
        val = _opened(data.val, columns, kind=train.kind, demo=kind, strict=strict)
    val.refuse_course("--val")
    return OpenedData(data, train, val)


def open_sources(
    data: Sequence[str],
    *,
    kind: str = "text",
    strict: bool = False,
    seed: int = 0,
    columns: Sequence[str] = (),
    mixed: bool = False,
) -> Sources:
    """Find and look at everything that `data` names.

    Args:
        data: each `demo`, a file, a folder, a glob or `hf:OWNER/NAME[@REVISION][:CONFIG][:SPLIT]`, and `:WEIGHT` after
            all of them or none, `:START..END` for one that changes. (`./demo` is a file or folder of that name.)
            `demo:chat` is the built-in corpus's conversations where `demo` would be its text, `demo:arithmetic` those
            about one topic.
        kind: the record kind that the stage needs; `demo` has all built-in kinds, a file has one.
        strict: refuse the data at its first unusable record.
        seed: of the built-in corpus.
        columns: `text=body`: a record's `text` is what the data calls `body`; see `columns.py`.
        mixed: text beside conversations, or conversations beside text, will do: the data is then of the kind "mixed".

    Raises:
        UserError: nothing is named; a name matches nothing; a file named by itself is empty, of an ending that is
            not known, or of another kind than `kind`; weights that are not positive or not for all; a column that no
            record has.
    """
    return _opened(data, columns, kind=kind, mixed=mixed, strict=strict, seed=seed)


def _opened(
    data: Sequence[str],
    columns: Sequence[str],
    *,
    kind: str,
    mixed: bool = False,
    demo: str | None = None,
    **how: Any,
) -> Sources:
    """
    Args:
        demo: the kind of the built-in corpus where that of the data is none of its kinds.
        how: other attributes of the sources.
    """
    sources = replace(find_sources(data, columns), kind=find_kind(kind).name, **how)
    beginnings = read_beginnings(sources)
    if sources.columns:
        check_columns(sources.columns, [record for each in beginnings for record in each.records])
    if mixed and {kind, MIXED[kind]} <= _kinds(beginnings, sources):
        sources, demo = replace(sources, kind="mixed"), kind
    if demo is not None:
        sources = replace(sources, members=tuple(replace(each, kind=each.kind or demo) for each in sources.members))
    _check_kind(beginnings, sources)
    return sources


def _kinds(beginnings: Sequence[Beginning], sources: Sources) -> set[str]:
    """The kinds of the first records; the built-in corpus has that of the data, unless it is named with another."""
    found = {kind_of(value) for each in beginnings for value in each.values(sources.columns)}
    return found | {each.kind or sources.kind for each in sources.members if each.demo}


def open_any(data: Sequence[str], kinds: Sequence[str] | None = None, *, columns: Sequence[str] = ()) -> Sources:
    """The data that `data` names, of the kind that its first records are.

    Args:
        kinds: the kinds that will do (by default all); the first of them where the data has several (`demo`) or
            cannot be told.
        columns: see `open_sources`.

    Raises:
        UserError: see `open_sources`; the data is of none of these kinds.
    """
    sources = find_sources(data, columns)
    beginnings = read_beginnings(sources)
    if sources.columns:
        check_columns(sources.columns, [record for each in beginnings for record in each.records])
    return of_any_kind(sources, beginnings, kinds)


def of_any_kind(sources: Sources, beginnings: Sequence[Beginning], kinds: Sequence[str] | None = None) -> Sources:
    """`sources` as the kind (one of `kinds`; by default of all) that most of its first records are.

    Raises:
        UserError: they are of none of these kinds.
    """
    kinds = tuple(all_kinds()) if kinds is None else kinds
    refusals: list[UserError] = []
    for kind in kinds:
        tried = replace(sources, kind=kind)
        try:
            _check_kind(beginnings, tried)
        except UserError as refusal:
            refusals.append(refusal)
            continue
        if tried.members[0].demo and tried.members[0].kind in (None, kind):
            return tried
        first = itertools.islice((value for each in beginnings for value in each.values(sources.columns)), PEEK)
        found = Counter(map(kind_of, first))
        best = max(kinds, key=lambda each: found[each])
        return replace(sources, kind=best) if found[best] else tried
    raise refusals[0]


@dataclass(frozen=True)
class Beginning:
    """The first readable records of a file or data set, under the data's own field names."""

    name: str
    named: bool  # the person named it itself
    records: list[Record]

    def values(self, columns: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
        """The values of the records, under the names that `columns` gives the fields."""
        items = renamed(self.records, columns) if columns else self.records
        return [item.value for item in items if isinstance(item, Record)]


def read_beginnings(sources: Sources) -> list[Beginning]:
    """The beginning of every file and data set; the built-in corpus has none."""
    return [
        Beginning(name, named, [item for item in itertools.islice(items, PEEK) if isinstance(item, Record)])
        for source in sources.members
        for name, named, items in _streams(source, None)
    ]


def find_sources(data: Sequence[str], columns: Sequence[str]) -> Sources:
    """Everything that `data` names, of whatever kind; nothing is read yet.

    Raises:
        UserError: see `open_sources`.
    """
    if not data:
        raise UserError("no data is named", f"give --data: {SUPPORTED}")
    members = tuple(open_source(name) for name in data)
    without = [source.name for source in members if source.weight is None]
    if 0 < len(without) < len(members):
        raise UserError(f"{without[0]} has no weight, and others have", f"give {without[0]}:WEIGHT, or no weights")
    for when in ("start", "end"):
        if not without and not any(getattr(each.weight, when) for each in members):
            raise UserError(f"at the {when} every weight is 0", "give one of the sources a weight above 0 there")
    return Sources(members, columns=parse_columns(columns) if columns else ())


def _streams(source: Source, on_bytes: OnBytes | None) -> Iterator[tuple[str, bool, Iterator[Record | Rejected]]]:
    """(name, whether the person named it itself, its records) of every file and data set of a source."""
    if source.hub is not None:
        yield source.hub.name, True, source.hub.records()
    for file in source.files:
        yield file.name, file.named, read_file(file, is_known, on_bytes)


def _demo_records(kind: str, seed: int, topic: str | None) -> Iterator[Record]:
    from mmcli.data import demo

    for number, value in enumerate(demo.records(kind, seed, topic), 1):
        yield Record(DEMO, number, value)


def _check_kind(beginnings: Sequence[Beginning], sources: Sources) -> None:
    """Refuse a named file of another kind, and folders and globs in which no file is of the kind needed.

    A file of another kind among good ones in a folder is no error here: its records are rejected one by one.
    """
    for source in sources.members:
        if source.kind not in (None, sources.kind) and not (sources.kind == "mixed" and source.kind in MIXED):
            raise _refusal(source.name, source.kind, sources.kind)
    refusals = []
    for each in beginnings:
        if refusal := _other_kind(each.name, each.values(sources.columns), sources.kind):
            if each.named:
                raise refusal
            refusals.append(refusal)
    if refusals and len(refusals) == len(beginnings):
        raise refusals[0]


def _other_kind(name: str, values: Sequence[dict[str, object]], needed: str) -> UserError | None:
    """The error for a file whose first records are all of other known kinds."""
    found = Counter(kind_of(value, needed) for value in values)
    if not found or found[needed] or found[UNKNOWN]:
        return None
    return _refusal(name, found.most_common(1)[0][0], needed)


def _refusal(name: str, kind: str, needed: str) -> UserError:
    other, label = find_kind(kind), find_kind(needed).label
    what = f"{name} holds {other.label}, and this stage needs {label}"
    return UserError(what, f"train on it with `mmcli {other.stage}`, or give --data a file of {label}")


def describe_change(share: tuple[float, float]) -> str:
    """A share at the first step and at the last, in words; empty where it stays as it is."""
    start, end = share
    return "" if start == end else f", from {start:.1%} to {end:.1%}"
