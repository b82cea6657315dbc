"""Renamed fields: `--columns text=body` reads the data's field `body` as the record's `text`.

A record that has one of the fields named on the right becomes those fields alone, under the names on the left; so
`text` (short for `text=text`) also picks one field out of many. A record that has none of them stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mmcli.data.record import Record, Rejected
from mmcli.errors import UserError


def parse_columns(columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(field of the record, field of the data) of each `NEW=OLD`.

    Raises:
        UserError: an empty name, or one field from two.
    """
    pairs: dict[str, str] = {}
    for column in columns:
        new, equals, old = (part.strip() for part in column.partition("="))
        old = old if equals else new
        if not new or not old:
            raise UserError(f'--columns "{column}" is not FIELD=COLUMN', "write it like: --columns text=body")
        if new in pairs:
            raise UserError(f"--columns gives {new} twice: {pairs[new]} and {old}", "give each field one column")
        pairs[new] = old
    return tuple(pairs.items())


def renamed(items: Iterable[Record | Rejected], columns: Sequence[tuple[str, str]]) -> Iterator[Record | Rejected]:
    """The records under the names that a stage knows."""
    for item in items:
        if isinstance(item, Record):
            value = {new: item.value[old] for new, old in columns if old in item.value}
            yield Record(item.file, item.line, value) if value else item
        else:
            yield item


def check_columns(columns: Sequence[tuple[str, str]], records: Iterable[Record]) -> None:
    """Refuse columns that name a field which none of the records has; without records there is nothing to tell.

    Raises:
        UserError: such a column, with the fields that there are.
    """
    fields = dict.fromkeys(field for record in records for field in record.value)
    missing = {old for _, old in columns} - set(fields)
    if missing and fields:
        known = ", ".join(list(fields)[:8])
        raise UserError(f"the data has no field {', '.join(sorted(missing))}", f"give --columns one of: {known}")
