"""Bytes of a data file to lines of text: gzip and zstd, byte order marks, and what is wrong with a line.

Undecodable bytes become lone surrogates (PEP 383), so nothing is lost before a line is judged. UTF-8 is assumed where
no byte order mark says UTF-16. A line ends at LF or CRLF. Lines with nothing but white space are no records: they are
skipped and not counted.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import zstandard

from mmcli.data.records.kinds import Rejected

MAX_LINE = 64 * 2**20  # characters; a longer line is not held in memory
MAX_RAW = 64 * 2**10  # bytes of a rejected record that are kept
HEAD = 2**20  # characters that are looked at to choose how a file is cut
CHUNK = 2**18  # characters read at once where lines do not matter
COMPRESSED = (".gz", ".zst")

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


class _Zstd(io.RawIOBase):
    """The decompressed bytes of zstd frames. (The library's own stream reader takes a cut-off frame for the end.)"""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._open = False  # inside a frame
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._ready:
            data = self._file.read(2**16)
            if not data:
                if self._open:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            while data:
                self._ready += self._frame.decompress(data)
                self._open = not self._frame.eof
                data = self._frame.unused_data
                if not self._open:
                    self._frame = zstandard.ZstdDecompressor().decompressobj()
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


@contextmanager
def open_text(path: Path, on_bytes: OnBytes | None = None) -> Iterator[io.TextIOWrapper]:
    """The decompressed text of a file; `on_bytes` is told the file's own bytes as they are read."""
    with path.open("rb") as file:
        raw: IO[bytes] = cast(IO[bytes], _Counting(file, on_bytes)) if on_bytes else file
        stream: IO[bytes]
        if path.suffix == ".gz":
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".zst":
            stream = cast(IO[bytes], _Zstd(raw))
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
    """Why a text cannot be used, or None: bytes that are not UTF-8, a lone surrogate, a NUL."""
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


def to_bytes(text: str) -> bytes:
    """The bytes that `text` was read from (UTF-8), lone surrogates included."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def reject(file: str, line: int, reason: str, text: str = "") -> Rejected:
    """A rejected line or record, its raw bytes bounded."""
    return Rejected(file, line, reason, to_bytes(text[:MAX_RAW])[:MAX_RAW])
