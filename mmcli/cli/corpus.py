"""Every text of some data, of plain files or of conversations: what a tokenizer learns from and is measured on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmcli.errors import UserError

if TYPE_CHECKING:
    from mmcli.data.records.kinds import Kind
    from mmcli.data.sources.sources import Sources

NOT_TEXT = ("role", "from", "id", "type", "weight")  # fields of conversations that hold no language
KINDS: tuple[Kind, ...] = ("text", "chat", "preference")
SAMPLE = 200_000  # characters of the data that are kept to measure a tokenizer on


def open_text_data(names: Sequence[str], columns: Sequence[str] = ()) -> list[Sources]:
    """The data that each of `names` names, each of whatever kind.

    Raises:
        UserError: see `open_sources`; a weight was given; columns that none of the data has.
    """
    from mmcli.data.preview import open_any
    from mmcli.data.sources.columns import parse_columns

    opened = [open_any([name]) for name in names]
    for sources in opened:
        sources.refuse_weights("a tokenizer")
    pairs = parse_columns(columns)
    for column in columns:
        _check_column(names, opened, column)
    return [replace(sources, columns=pairs) for sources in opened]


def _check_column(names: Sequence[str], opened: Sequence[Sources], column: str) -> None:
    """Refuse a column that none of the data has; one that has it is enough."""
    from mmcli.data.preview import open_any

    refusals: list[UserError] = []
    for name, sources in zip(names, opened, strict=True):
        if sources.parts[0].demo:
            continue  # its fields are known
        try:
            open_any([name], (sources.kind, *KINDS), columns=[column])
            return
        except UserError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]


class Corpus:
    """The texts of all records, read once; counts what it meets and keeps a sample.

    Where there is more than `most` bytes of text, a part of them is taken, evenly (see `Pace`).
    """

    def __init__(self, sources: Sequence[Sources], most: float = math.inf) -> None:
        self._sources, self._most = sources, most
        self.taken = self.skipped = 0  # bytes, texts
        self.records = self.rejected = 0
        self.first_rejected = ""
        self.sample = ""

    def __iter__(self) -> Iterator[str]:
        from mmcli.data.records.kinds import Rejected
        from mmcli.data.sources.sampling import Pace

        sizes = [sources.total for sources in self._sources]
        known = sum(size for size in sizes if size is not None)
        for sources, size in zip(self._sources, sizes, strict=True):
            share = 1 / len(sizes) if size is None or not known else size / known
            pace = Pace(sources, self._most * share)
            for record in sources.records(pace.on_bytes):
                if isinstance(record, Rejected):
                    self.first_rejected = self.first_rejected or f"{record.file}:{record.line}: {record.reason}"
                    self.rejected += 1
                    continue
                self.records += 1
                for text in filter(pace.takes, texts_of(record.value)):
                    self.sample += text[: SAMPLE - len(self.sample)]
                    yield text
            self.taken += pace.taken
            self.skipped += pace.skipped


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a record of any kind: the strings in it, without roles and ids."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_TEXT:
                yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)
