"""Parquet files: a record a row, rows numbered from 1; read a piece at a time, so memory does not grow with the file.

pyarrow is imported only when such a file is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcli.data.formats.lines import DamagedError, OnBytes, fault
from mmcli.data.record import Record, Rejected, reject

ROWS_AT_ONCE = 256


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet file, None if it is damaged (which reading will tell)."""
    try:
        with _open(path) as file:
            return int(file.metadata.num_rows)
    except DamagedError:
        return None


def records_of_parquet(
    name: str, path: Path, size: int, on_bytes: OnBytes | None = None
) -> Iterator[Record | Rejected]:
    """The rows of a Parquet file as records.

    Fields that are null are left out, since a table cannot lack one; what JSON has no type for becomes text. A row
    with a NUL, or with text that is not UTF-8, is rejected.

    Args:
        size: bytes of the file; `on_bytes` is called with counts of them in proportion to the rows read.

    Raises:
        DamagedError: it cannot be read (further).
    """
    with _open(path) as file:
        total, told, row = file.metadata.num_rows, 0, 0
        for batch in _batches(file):
            for value in _rows(batch):
                row += 1
                if on_bytes is not None:
                    reached = size * row // total
                    on_bytes(reached - told)
                    told = reached
                yield row_record(name, row, value)


def row_record(name: str, row: int, value: Mapping[str, Any] | UnicodeDecodeError) -> Record | Rejected:
    """The record of a row of a table; bytes in it are UTF-8 text."""
    try:
        if isinstance(value, UnicodeDecodeError):
            raise value
        plain = _plain(value)
    except UnicodeDecodeError as error:
        return reject(name, row, f"not UTF-8: byte 0x{error.object[error.start]:02x}")
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

    with _damage():
        file = ParquetFile(path)
    with file:
        yield file


def _batches(file: Any) -> Iterator[Any]:
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE)
    while True:
        with _damage():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _damage() -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow reports damaged pages as an OSError without a number; the system's own errors have one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(f"the Parquet data is damaged: {_short(error)}") from None


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _rows(batch: Any) -> Iterator[Mapping[str, Any] | UnicodeDecodeError]:
    """The rows of a batch; the error for one whose text is not UTF-8, which Arrow does not check."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
        return
    yield from rows
