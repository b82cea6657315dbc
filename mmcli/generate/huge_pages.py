"""Weights in huge pages, where Linux has them: to read many megabytes for each token then misses fewer address lookups.

No torch here. `huge_pages()` moves what was allocated inside; what the pages hold, and how much memory, stays the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmcli.machine import read_system_file

SIZE = 2 << 20  # bytes of a huge page on x86-64 and, with pages of 4 KiB, on arm64
COLLAPSE = 25  # MADV_COLLAPSE of madvise(2), Linux 6.1 and later
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")
MOST_SECONDS = 0.1  # where free memory is in pieces, a huge page takes milliseconds to find
MOST_AT_ONCE = 16 * SIZE


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Move the memory that is allocated inside into huge pages, as much as a tenth of a second is enough for.

    Only where the system leaves it to programs ("madvise", the usual policy of Linux): under "always" it is done
    already, under "never" it is not wanted. Elsewhere this does nothing.
    """
    if not _is_left_to_programs():
        yield
        return
    before = _blocks()
    yield
    _collapse(sorted(_blocks() - before))


def _is_left_to_programs() -> bool:
    return "[madvise]" in read_system_file(POLICY)


def _blocks() -> set[int]:
    """Addresses of the whole aligned blocks, as large as a huge page, in this process's own memory without a file."""
    found: set[int] = set()
    for line in read_system_file(MAPS).splitlines():
        span, rights, _, _, file, *name = line.split()
        if rights.startswith("rw") and rights.endswith("p") and file == "0" and name in ([], ["[heap]"]):
            first, end = (int(each, 16) for each in span.split("-"))
            found.update(range(-(-first // SIZE) * SIZE, end // SIZE * SIZE, SIZE))
    return found


def _collapse(blocks: Iterable[int]) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    until = time.perf_counter() + MOST_SECONDS
    for first, size in _runs(blocks):
        madvise(first, size, COLLAPSE)  # it leaves out, without harm, what was never written or is gone again
        if time.perf_counter() > until:
            return


def _runs(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of blocks that follow each other, a few at a time: a call by itself can take milliseconds."""
    first = size = 0
    for block in blocks:
        if size and block == first + size and size < MOST_AT_ONCE:
            size += SIZE
            continue
        if size:
            yield first, size
        first, size = block, SIZE
    if size:
        yield first, size
