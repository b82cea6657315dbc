"""Readers of JSON (arrays and objects) and CSV that know the line of every record and continue after a bad one."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmcli.data.formats.elements import ElementScanner
from mmcli.data.formats.lines import MAX_LINE, Line, fault, parse_record
from mmcli.data.record import Record, Rejected, reject

IsRecord = Callable[[Mapping[str, Any]], bool]
"""True if an object has the fields of a record, and is no wrapper around records."""

ROW_LINES = 1000  # a quoted CSV cell may span this many lines; past that, its quote was never closed
MEMBER = re.compile(r'[\s,]*"')
VALUE = re.compile(r"\s*:\s*")


def records_of_array(file: str, chunks: Iterable[str], first_line: int = 1) -> Iterator[Record | Rejected]:
    """The elements of one JSON array, each read by itself, so that a bad one costs only itself."""
    scanner = ElementScanner(MAX_LINE, first_line)
    for line, text in scanner.elements(chunks):
        if text is None:
            yield reject(file, line, f"an element is too long: more than {MAX_LINE:,} characters")
        else:
            yield parse_record(file, line, text)


def records_of_object(file: str, text: str, is_record: IsRecord) -> Iterator[Record | Rejected]:
    """One JSON object: a record itself, or a wrapper around one array of records (`{"data": [...]}`)."""
    line = 1 + text[: len(text) - len(text.lstrip())].count("\n")
    record = parse_record(file, line, text)
    if isinstance(record, Record) and not is_record(record.value):
        wrapped = [key for key, item in record.value.items() if _is_records(item)]
        if len(wrapped) == 1:
            start, end = _span(text, wrapped[0])
            yield from records_of_array(file, [text[start:end]], 1 + text[:start].count("\n"))
            return
    yield record


def _is_records(item: Any) -> bool:
    return isinstance(item, list) and any(isinstance(value, dict) for value in item)


def _span(text: str, wanted: str) -> tuple[int, int]:
    """(start, end) of the value of the member `wanted` in the text of a valid JSON object."""
    decoder, position = json.JSONDecoder(), text.index("{") + 1
    span = (0, 0)
    while match := MEMBER.match(text, position):
        key, position = decoder.raw_decode(text, match.end() - 1)
        start = VALUE.match(text, position).end()  # type: ignore[union-attr]  # the object is valid: a colon follows
        _, position = decoder.raw_decode(text, start)
        if key == wanted:
            span = (start, position)
    return span


def records_of_csv(file: str, lines: Iterable[Line], delimiter: str | None = None) -> Iterator[Record | Rejected]:
    """Rows of a CSV file under the names of its first row.

    Args:
        delimiter: None: `,`, `;` or tab, whichever the first row has most of.
    """
    csv.field_size_limit(MAX_LINE)
    columns: list[str] = []
    for line, text, closed in _rows(lines):
        if problem := fault(text):
            yield reject(file, line, problem, text)
            continue
        if not columns and delimiter is None:
            delimiter = max(",;\t", key=text.count)
        cells = _cells(text, delimiter or ",") if closed else None
        if cells is None:
            yield reject(file, line, "a quote is never closed" if not closed else "not a CSV row", text)
        elif not columns:
            columns = [cell.strip() for cell in cells]
        elif len(cells) != len(columns):
            reason = f"a row has another number of cells than the first: {len(cells)} of {len(columns)}"
            yield reject(file, line, reason, text)
        else:
            yield Record(file, line, dict(zip(columns, cells, strict=True)))


def _cells(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None


def _rows(lines: Iterable[Line]) -> Iterator[tuple[int, str, bool]]:
    """(line, text, closed) of each row; a quote that is never closed costs its own line only."""
    source, waiting = iter(lines), deque[Line]()
    while True:
        held: list[Line] = []
        quotes, size = 0, 0
        while len(held) < ROW_LINES and size < MAX_LINE:
            line = waiting.popleft() if waiting else next(source, None)
            if line is None:
                break
            held.append(line)
            quotes += line.text.count('"')
            size += len(line.text)
            if quotes % 2 == 0:
                break
        if not held:
            return
        if quotes % 2 == 0:
            if len(held) > 1 or held[0].text.strip():
                yield held[0].number, "\n".join(line.text for line in held), True
        else:
            yield held[0].number, held[0].text, False
            waiting.extendleft(reversed(held[1:]))
