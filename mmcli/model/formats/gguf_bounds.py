"""What a GGUF file claims to hold, against its size: read before the library, which believes every count."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from mmcli.errors import UserError

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by type
STRING, ARRAY = 8, 9
SMALLEST = {STRING: 8, ARRAY: 12}  # bytes of an empty one
SMALLEST_FIELD, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
MOST_DIMENSIONS = 4  # of ggml
MOST_DEPTH = 4  # of arrays of arrays
AGAIN = "download it again"


def check_counts(path: Path) -> None:
    """Refuse a file whose counts and lengths go beyond its end.

    Raises:
        UserError: such a file, with the count.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        walk = _Walk(path, file, size)
        walk.skip(4)  # the magic
        if walk.number("<I") not in (2, 3):
            return  # another version or byte order, which the library reads or refuses
        tensors, fields = walk.number("<Q"), walk.number("<Q")
        walk.need(tensors * SMALLEST_TENSOR + fields * SMALLEST_FIELD, f"{tensors:,} tensors and {fields:,} fields")
        for _ in range(fields):
            walk.text()
            walk.value(walk.number("<I"), 0)
        for _ in range(tensors):
            walk.text()
            dimensions = walk.number("<I")
            if dimensions > MOST_DIMENSIONS:
                raise UserError(f"{path} is damaged or not a GGUF file: a tensor of {dimensions:,} dimensions", AGAIN)
            walk.skip(8 * dimensions + 4 + 8)


class _Walk:
    """Goes over the head of a file; every step stays inside it."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._path, self._file, self._size, self._place = path, file, size, 0

    def need(self, count: int, what: str) -> None:
        """Raise UserError if fewer than `count` bytes are left for `what`."""
        if count > self._size - self._place:
            raise UserError(f"{self._path} is damaged or not a GGUF file: it claims {what} past its end", AGAIN)

    def skip(self, count: int) -> None:
        self.need(count, f"{count:,} bytes")
        self._place += count
        self._file.seek(self._place)

    def number(self, form: str) -> int:
        count = struct.calcsize(form)
        self.need(count, "a number")
        self._place += count
        return int(struct.unpack(form, self._file.read(count))[0])

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int, depth: int) -> None:
        """Skip one value."""
        if kind in SCALARS:
            self.skip(SCALARS[kind])
        elif kind == STRING:
            self.text()
        elif kind == ARRAY and depth < MOST_DEPTH:
            inner, count = self.number("<I"), self.number("<Q")
            each = SCALARS.get(inner, SMALLEST.get(inner, 1))
            self.need(count * each, f"{count:,} items")
            if inner in SCALARS:
                self.skip(count * each)
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise UserError(f"{self._path} is damaged or not a GGUF file: a value of type {kind}", AGAIN)
