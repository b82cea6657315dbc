"""Decompressed bytes of zstd files; gzip is Python's own."""

from __future__ import annotations

import io
from typing import IO, cast

import zstandard


class ZstdReader(io.RawIOBase):
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
