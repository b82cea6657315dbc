"""Tables, Parquet and Arrow files: a record a row, rows numbered from 1.

They are read a piece at a time, so memory does not grow with the file, nor with what a small one claims to hold.

An Arrow file is what `save_to_disk` of `datasets` writes (a stream), or Feather. pyarrow is imported only when such a
file is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmcli.data.formats.lines import MAX_LINE, TOO_DEEP, DamagedError, OnBytes, fault
from mmcli.data.record import Record, Rejected, reject

ROWS_AT_ONCE = 256
BATCH_BYTES = 128 * 2**20  # of rows that are held at once
MOST_RATIO = 1_000  # pages that unpack to more times their size, beyond
FREE_BYTES = 256 * 2**20  # so many bytes, and more rows than so many for each byte of the file, beyond
FREE_ROWS = 1_000_000  # so many rows, are damage
PAGE_HEADER = 64  # bytes of a page that are looked at; its sizes come first
ARROW_FILE = b"ARROW1"


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file; of an Arrow file 0, or None where there are some; None where it is damaged, too (which
    reading will tell).
    """
    try:
        if path.suffix.lower() == ".arrow":
            return 0 if not any(batch.num_rows for batch, _ in _arrow_batches(path)) else None
        with _open(path) as file:
            return int(file.metadata.num_rows)
    except DamagedError:
        return None


def records_of_table(name: str, path: Path, size: int, on_bytes: OnBytes | None = None) -> Iterator[Record | Rejected]:
    """The rows of a Parquet or Arrow file as records.

    Fields that are null are left out, since a table cannot lack one; what JSON has no type for becomes text. A row
    with a NUL, or with text that is not UTF-8, is rejected.

    Args:
        size: bytes of the file; `on_bytes` is called with counts of them as they are read.

    Raises:
        DamagedError: it cannot be read (further).
    """
    is_arrow = path.suffix.lower() == ".arrow"
    row = told = 0
    for batch, end in _arrow_batches(path) if is_arrow else _parquet_batches(path):
        if row + batch.num_rows > FREE_ROWS + MOST_RATIO * size:
            raise DamagedError(f"the table claims more than {MOST_RATIO:,} rows for each byte of its file")
        start = told
        for number, value in enumerate(_rows(batch), 1):
            row += 1
            if on_bytes is not None:
                reached = start + (end - start) * number // batch.num_rows
                on_bytes(reached - told)
                told = reached
            yield row_record(name, row, value)


def row_record(name: str, row: int, value: Mapping[str, Any] | Exception) -> Record | Rejected:
    """The record of a row of a table; bytes in it are UTF-8 text."""
    try:
        if isinstance(value, Exception):
            raise value
        plain = _plain(value)
    except UnicodeDecodeError as error:
        return reject(name, row, f"not UTF-8: byte 0x{error.object[error.start]:02x}")
    except RecursionError:
        return reject(name, row, TOO_DEEP)
    if sum(map(len, _texts(plain))) > MAX_LINE:
        return reject(name, row, f"a row is too long: more than {MAX_LINE:,} characters")
    if problem := next(filter(None, map(fault, _texts(plain))), None):
        return reject(name, row, problem)
    return Record(name, row, plain)


def _plain(value: Any) -> Any:
    """A value as JSON would hold it."""
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return None if value is None else str(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with _damage("Parquet"):
        file = ParquetFile(path)
    with file:
        yield file


def _parquet_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """The rows of a Parquet file, as many at once as cannot fill the memory; each time the bytes read up to there."""
    with _open(path) as file, path.open("rb") as raw:
        size, total, row = path.stat().st_size, file.metadata.num_rows, 0
        if total > FREE_ROWS + MOST_RATIO * size:
            raise DamagedError(f"the table claims more than {MOST_RATIO:,} rows for each byte of its file")
        groups = range(file.metadata.num_row_groups)
        rows = [_rows_at_once(file.metadata.row_group(group), raw) for group in groups]
        parts = (
            [(min(rows, default=ROWS_AT_ONCE), list(groups))]
            if len(set(rows)) < 2
            else [(count, [group]) for count, group in zip(rows, groups, strict=True)]
        )
        for count, which in parts:
            for batch in _each(file.iter_batches(batch_size=count, row_groups=which), "Parquet"):
                row += batch.num_rows
                yield batch, size * row // max(total, 1)


def _rows_at_once(group: Any, raw: IO[bytes]) -> int:
    """Rows of a row group that are read together: their bytes are bounded even where each repeats a long value.

    Raises:
        DamagedError: a column unpacks to far more than it takes in the file.
    """
    largest = 0  # bytes that one row may have by repeating values of the file
    for number in range(group.num_columns):
        column = group.column(number)
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        if unpacked > max(FREE_BYTES, MOST_RATIO * packed):
            raise DamagedError(f"the Parquet data unpacks to more than {MOST_RATIO:,} times its size")
        if "DELTA_BYTE_ARRAY" in column.encodings:  # values share their beginnings
            largest += unpacked
        elif column.has_dictionary_page and column.physical_type.endswith("BYTE_ARRAY"):
            largest += _dictionary_bytes(raw, column.dictionary_page_offset, unpacked)
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES // max(largest, 1)))


def _dictionary_bytes(raw: IO[bytes], offset: int | None, most: int) -> int:
    """Bytes of the values in a dictionary page (PageHeader of parquet.thrift, compact protocol); `most` if unclear."""
    if offset is None:
        return most
    raw.seek(offset)
    header = raw.read(PAGE_HEADER)
    numbers: list[int] = []
    place = 0
    for _ in range(2):  # the page's type, its unpacked size: i32 fields 1 and 2
        if header[place : place + 1] != b"\x15":
            return most
        value = shift = 0
        place += 1
        while place < len(header):
            value |= (header[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if not header[place - 1] & 0x80:
                break
        numbers.append(value >> 1)  # zigzag; sizes are not negative
    return min(numbers[1], most)


def _arrow_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """The rows of an Arrow file, stream or Feather, a few at once; each time the bytes read up to there."""
    import pyarrow

    with _damage("Arrow"):
        source = pyarrow.memory_map(str(path))
    with source:
        with _damage("Arrow"):
            if source.read(len(ARROW_FILE)) == ARROW_FILE:
                file = pyarrow.ipc.open_file(source)
                batches: Iterator[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
        before = 0
        for batch in _each(batches, "Arrow"):
            with _damage("Arrow"):
                batch.validate()
            after = max(source.tell(), before)
            for first in range(0, batch.num_rows, ROWS_AT_ONCE):
                part = batch.slice(first, ROWS_AT_ONCE)
                yield part, before + (after - before) * (first + part.num_rows) // batch.num_rows
            before = after


def _each(batches: Iterator[Any], what: str) -> Iterator[Any]:
    while True:
        with _damage(what):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _damage(what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow reports damaged pages as an OSError without a number; the system's own errors have one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(f"the {what} data is damaged: {_short(error)}") from None


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _rows(batch: Any) -> Iterator[Mapping[str, Any] | Exception]:
    """The rows of a batch; the error for one whose text is not UTF-8, which Arrow does not check."""
    from pyarrow.types import is_dictionary

    heavy = batch.nbytes > BATCH_BYTES // 8 or any(is_dictionary(column.type) for column in batch.columns)
    try:
        rows = None if heavy else batch.to_pylist()
    except (UnicodeDecodeError, RecursionError):
        rows = None
    if rows is not None:
        yield from rows
        return
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except (UnicodeDecodeError, RecursionError) as error:
            yield error
