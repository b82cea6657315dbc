"""Decompressed bytes of gzip, bzip2, xz and zstd files, up to where a file is damaged.

A file that is cut off or broken gives every byte before the damage; what is wrong is in `Decompressed.damage`.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

import zstandard

FEED = 2**16  # bytes of the file that a decompressor is given at once
ZSTD_FEED = 2**12  # zstd has no bound on what it returns: 4 KiB unpack to 128 MiB at most
MOST_RATIO = 1_000  # a file that unpacks to more times its size, beyond
FREE_BYTES = 256 * 2**20  # so many bytes, is no text
ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(frozen=True)
class _Codec:
    """One way to compress: a decompressor of one frame (member, stream), and how it is given bytes."""

    new_frame: Callable[[], Any]
    bounded: bool  # decompress(data, most) returns no more than `most` bytes
    feed: int = FEED


CODECS = {
    ".gz": _Codec(lambda: zlib.decompressobj(wbits=31), True),
    ".bz2": _Codec(bz2.BZ2Decompressor, True),
    ".xz": _Codec(lzma.LZMADecompressor, True),
    ".zst": _Codec(lambda: zstandard.ZstdDecompressor().decompressobj(), False, ZSTD_FEED),
}
COMPRESSED = tuple(CODECS)


class Decompressed(io.RawIOBase):
    """The bytes that the frames of a compressed file hold; they end at the end of the file, or at its damage.

    Attributes:
        damage: what is wrong with the file, once its last good byte was read; None where nothing is.
    """

    def __init__(self, file: IO[bytes], ending: str) -> None:
        self._file, self._codec = file, CODECS[ending]
        self._frame = self._codec.new_frame()
        self._open = True  # inside a frame, or before the first
        self._started = False  # a byte of this frame was given
        self._waiting = b""  # bytes of the file that are not unpacked yet
        self._ready = memoryview(b"")  # unpacked bytes that are not taken yet
        self._read = self._unpacked = 0
        self.damage: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._ready:
            if self.damage is not None:
                return 0
            try:
                data = self._next(len(view))
            except ERRORS as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
                    raise
                self.damage = f"the compressed data is damaged: {error}"
                return 0
            if data is None:
                return 0
            self._ready = memoryview(data)
            self._unpacked += len(data)
            if self._unpacked > max(FREE_BYTES, MOST_RATIO * self._read):
                self.damage = f"the compressed data unpacks to more than {MOST_RATIO:,} times its size"
                return 0
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _next(self, most: int) -> bytes | None:
        """Some unpacked bytes, none perhaps; None at the end of the file."""
        codec = self._codec
        if not self._waiting and (not self._open or getattr(self._frame, "needs_input", True)):
            self._waiting = self._file.read(codec.feed)
            self._read += len(self._waiting)
            if not self._waiting:
                if self._started:
                    raise EOFError("it ends in the middle of a frame")
                return None
        if not self._open:
            self._waiting = self._waiting.lstrip(b"\0")  # padding between frames
            if not self._waiting:
                return b""
            self._frame, self._open = codec.new_frame(), True
        self._started = True
        limit = (most,) if codec.bounded else ()
        data: bytes = self._frame.decompress(self._waiting, *limit)
        self._waiting = getattr(self._frame, "unconsumed_tail", b"")
        if self._frame.eof:
            self._waiting, self._open, self._started = self._frame.unused_data, False, False
        return data
