"""Bytes of a data file to lines of text, and the records of JSON Lines.

Undecodable bytes become lone surrogates (PEP 383), so nothing is lost before a line is judged. UTF-8 is assumed where
no byte order mark says UTF-16. A line ends at LF or CRLF. Lines with nothing but white space are no records: they are
skipped and not counted.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from mmcli.data.formats.compression import COMPRESSED, Decompressed
from mmcli.data.record import Record, Rejected, reject, to_bytes

MAX_LINE = 64 * 2**20  # characters; a longer line is not held in memory
HEAD = 2**20  # characters that are looked at to choose how a file is cut
CHUNK = 2**18  # characters read at once where lines do not matter
MAX_DEPTH = 100  # arrays and objects inside each other
MANY_VALUES = 4_000_000  # values of one record; a few bytes of JSON each, a hundred times that in memory

TOO_DEEP = f"nested too deeply: more than {MAX_DEPTH} levels"

Layout = Literal["lines", "array", "object"]
OnBytes = Callable[[int], None]


class DamagedError(Exception):
    """A compressed or UTF-16 file that ends or breaks in the middle."""


class TextFile(io.TextIOWrapper):
    """The text of a file, up to where it is damaged."""

    unpacked: Decompressed | None = None
    _broken: str | None = None

    def take(self, read: Callable[[int], str], size: int) -> str:
        """What `read`, a method of this, gives for `size`; nothing where the text cannot be decoded further."""
        try:
            return read(size)
        except UnicodeDecodeError as error:
            self._broken = f"the text is damaged: {error.reason}"
            return ""

    @property
    def damage(self) -> str | None:
        """Why the text ended before the file did, once all of it was read."""
        return self._broken or (self.unpacked.damage if self.unpacked is not None else None)

    def check_whole(self) -> None:
        """Raise DamagedError if the text ended before the file did."""
        if self.damage is not None:
            raise DamagedError(self.damage)


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
def open_text(path: Path, on_bytes: OnBytes | None = None) -> Iterator[TextFile]:
    """The decompressed text of a file; `on_bytes` is called with counts of the file's own bytes as they are read."""
    ending = path.suffix.lower()
    with path.open("rb") as file:
        raw: IO[bytes] = cast(IO[bytes], _Counting(file, on_bytes)) if on_bytes else file
        unpacked = Decompressed(raw, ending) if ending in COMPRESSED else None
        buffered = io.BufferedReader(unpacked or cast(io.RawIOBase, raw), 2**18)
        encoding, errors = _encoding(buffered.peek(4)[:4])
        text = TextFile(buffered, encoding=encoding, errors=errors, newline="\n")
        text.unpacked = unpacked
        yield text


def _encoding(head: bytes) -> tuple[str, str]:
    """(codec, error handler): both keep faults as lone surrogates."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", "surrogatepass"
    return "utf-8-sig", "surrogateescape"


def read_lines(stream: TextFile, limit: int = MAX_LINE) -> Iterator[Line]:
    """The lines of a text, numbered from 1; one longer than `limit` characters comes in parts of one number.

    Where the file is damaged they end with the last whole line, and `stream.damage` tells.
    """
    number, at_start = 1, True
    while True:
        text = stream.take(stream.readline, limit)
        ended = text.endswith("\n")
        if not text or (stream.damage is not None and not ended and len(text) < limit):
            return
        if ended:
            text = text[:-2] if text.endswith("\r\n") else text[:-1]
        if text or at_start:
            yield Line(number, text, complete=ended or len(text) < limit)
        at_start = ended
        number += ended


def read_chunks(stream: TextFile, size: int = CHUNK) -> Iterator[str]:
    """The text in pieces of `size` characters; where the file is damaged they end, and `stream.damage` tells."""
    while text := stream.take(stream.read, size):
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
    if len(text) > MANY_VALUES and sum(map(text.count, ",{[")) > MANY_VALUES:
        return reject(file, line, f"a record is too large: more than {MANY_VALUES:,} values", text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return reject(file, line, f"not JSON: {error.msg} at character {error.pos + 1}", text)
    except (ValueError, RecursionError) as error:
        return reject(file, line, f"not JSON: {error}", text)
    if not isinstance(value, dict):
        return reject(file, line, f"not an object: a JSON {_name(value)}", text)
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
        return reject(file, line, TOO_DEEP, text)
    if "\\u" in text and (problem := _escaped_fault(value)):
        return reject(file, line, problem, text)
    return Record(file, line, value)


def is_deep(value: Any) -> bool:
    """True if arrays and objects are inside each other more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


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
