"""Bytes of a data file to lines of text, and the records of JSON Lines.

Undecodable bytes become lone surrogates (PEP 383), so nothing is lost before a line is judged. UTF-8 is assumed where
no byte order mark says UTF-16. A line ends at LF or CRLF. Lines with nothing but white space are no records: they are
skipped and not counted.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import zstandard

from mmcli.data.formats.compression import ZstdReader
from mmcli.data.record import Record, Rejected, reject, to_bytes

MAX_LINE = 64 * 2**20  # characters; a longer line is not held in memory
HEAD = 2**20  # characters that are looked at to choose how a file is cut
CHUNK = 2**18  # characters read at once where lines do not matter
COMPRESSED = (".gz", ".zst")

Layout = Literal["lines", "array", "object"]
OnBytes = Callable[[int], None]


class DamagedError(Exception):
    """A compressed or UTF-16 file that ends or breaks in the middle."""


@dataclass(frozen=True)
class Line:
    """One line without its line end; `complete` is False where it went on past the limit."""

    number: int
    text: str
    complete: bool = True


class _Counting(io.RawIOBase):
    """A binary file that tells how many of its bytes were read."""

    def __init__(self, file: IO[bytes], on_bytes: OnBytes) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._on_bytes(len(data))
        return len(data)


@contextmanager
def open_text(path: Path, on_bytes: OnBytes | None = None) -> Iterator[io.TextIOWrapper]:
    """The decompressed text of a file; `on_bytes` is called with counts of the file's own bytes as they are read."""
    with path.open("rb") as file:
        raw: IO[bytes] = cast(IO[bytes], _Counting(file, on_bytes)) if on_bytes else file
        stream: IO[bytes]
        if path.suffix == ".gz":
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".zst":
            stream = cast(IO[bytes], ZstdReader(raw))
        else:
            stream = raw
        buffered = io.BufferedReader(cast(io.RawIOBase, stream), 2**18)
        with _damage():
            encoding, errors = _encoding(buffered.peek(4)[:4])
        yield io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="\n")


def _encoding(head: bytes) -> tuple[str, str]:
    """(codec, error handler): both keep faults as lone surrogates."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", "surrogatepass"
    return "utf-8-sig", "surrogateescape"


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise DamagedError(f"the compressed data is damaged: {error}") from None
    except UnicodeDecodeError as error:
        raise DamagedError(f"the text is damaged: {error.reason}") from None


def read_lines(stream: io.TextIOWrapper, limit: int = MAX_LINE) -> Iterator[Line]:
    """The lines of a text, numbered from 1; one longer than `limit` characters comes in parts of one number.

    Raises:
        DamagedError: the stream cannot be read further.
    """
    number, at_start = 1, True
    while True:
        with _damage():
            text = stream.readline(limit)
        if not text:
            return
        ended = text.endswith("\n")
        if ended:
            text = text[:-2] if text.endswith("\r\n") else text[:-1]
        if text or at_start:
            yield Line(number, text, complete=ended or len(text) < limit)
        at_start = ended
        number += ended


def read_chunks(stream: io.TextIOWrapper, size: int = CHUNK) -> Iterator[str]:
    """The text in pieces of `size` characters.

    Raises:
        DamagedError: the stream cannot be read further.
    """
    while True:
        with _damage():
            text = stream.read(size)
        if not text:
            return
        yield text


def fault(text: str) -> str | None:
    """The reason why a text cannot be used, or None: bytes that are not UTF-8, a lone surrogate, a NUL."""
    if "\0" in text:
        return "a NUL character: this is binary data, or UTF-16 without a byte order mark"
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"not UTF-8: byte 0x{code - 0xDC00:02x} at character {error.start + 1}{_guess(text)}"
        return f"a lone surrogate: U+{code:04X} at character {error.start + 1}"
    return None


def _guess(text: str) -> str:
    """Names the encoding where the bytes make Chinese text as GBK."""
    try:
        decoded = to_bytes(text).decode("gb18030")
    except UnicodeDecodeError:
        return ""
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in decoded[:1000])
    looks_chinese = chinese * 3 >= sum(not char.isascii() for char in decoded[:1000])
    return "; it reads as GBK: convert it with `iconv -f GB18030 -t UTF-8`" if looks_chinese else ""


def choose_layout(head: str, *, named_lines: bool = False) -> Layout:
    """The layout of the JSON values of a file, by its beginning.

    `lines`: a value a line; `array`: one array of records; `object`: one object over several lines, or alone.
    `named_lines`: its name says JSONL, which decides where the beginning is too broken to tell.
    """
    filled = [line.strip() for line in head.split("\n") if line.strip()]
    if not filled:
        return "lines"
    first, second = filled[0], filled[1] if len(filled) > 1 else ""
    if first.startswith("["):
        # A bad first line of JSONL may begin with "[" too: then the second line is a record by itself.
        return "lines" if first != "[" and isinstance(_try(second), dict) else "array"
    if not first.startswith("{"):
        return "lines"
    if isinstance(_try(first), dict):
        return "lines" if second else "object"
    if isinstance(_try(second), dict) and first != "{":
        return "lines"
    return "object" if first == "{" or not (named_lines or first.endswith("}")) else "lines"


def _try(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_record(file: str, line: int, text: str) -> Record | Rejected:
    """The record that a JSON text holds."""
    if problem := fault(text):
        return reject(file, line, problem, text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return reject(file, line, f"not JSON: {error.msg} at character {error.pos + 1}", text)
    except (ValueError, RecursionError) as error:
        return reject(file, line, f"not JSON: {error}", text)
    if not isinstance(value, dict):
        return reject(file, line, f"not an object: a JSON {_name(value)}", text)
    if "\\u" in text and (problem := _escaped_fault(value)):
        return reject(file, line, problem, text)
    return Record(file, line, value)


def _escaped_fault(value: Any) -> str | None:
    r"""A NUL or a lone surrogate that the JSON text escapes as `\u0000`, `\ud800`."""
    if isinstance(value, str):
        if "\0" in value:
            return "a NUL character: written \\u0000"
        lone = next((char for char in value if "\ud800" <= char <= "\udfff"), None)
        return f"a lone surrogate: written \\u{ord(lone):04x}" if lone else None
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((problem for part in parts if (problem := _escaped_fault(part))), None)


def _name(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def records_by_line(file: str, lines: Iterable[Line]) -> Iterator[Record | Rejected]:
    """A JSON object a line."""
    too_long = 0
    for line in lines:
        if not line.complete or line.number == too_long:
            if line.number != too_long:
                yield reject(file, line.number, f"a line is too long: more than {MAX_LINE:,} characters", line.text)
            too_long = line.number
        elif line.text.strip():
            yield parse_record(file, line.number, line.text)
