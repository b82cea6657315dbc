"""Memory in huge pages: what is moved, and that it stays what it was."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcli.generate import huge_pages

SIZE = 8 * huge_pages.SIZE


def in_huge_pages(address: int) -> int:
    """KiB in huge pages of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, end = (int(each, 16) for each in head.split("-"))
            inside = first <= address < end
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1])
    return 0


def written() -> mmap.mmap:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes(range(256)) * (SIZE // 256))
    return memory


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.mark.skipif(sys.platform != "linux", reason="the system of Linux")
def test_new_memory_moves_and_keeps_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "MOST_SECONDS", 60.0)
    old = written()
    with huge_pages.huge_pages():
        new = written()
    assert bytes(new) == bytes(old)
    if not huge_pages._is_left_to_programs():
        pytest.skip("the system does not leave huge pages to programs")
    moved = in_huge_pages(address_of(new))
    if moved == 0:
        pytest.skip("a kernel before 6.1, or one without memory for huge pages")
    assert moved * 1024 > SIZE - 4 * huge_pages.SIZE


@pytest.mark.parametrize("policy", ["always madvise [never]", "[always] madvise never", None], ids=str)
def test_another_policy_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: str | None) -> None:
    place = tmp_path / "enabled"
    if policy is not None:
        place.write_text(policy, encoding="ascii")
    monkeypatch.setattr(huge_pages, "POLICY", place)
    monkeypatch.setattr(huge_pages, "_collapse", lambda _: pytest.fail("moved"))
    with huge_pages.huge_pages():
        written()


@pytest.mark.skipif(sys.platform != "linux", reason="the system of Linux")
def test_it_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "MOST_SECONDS", -1.0)
    seen: list[int] = []

    def blocks() -> Iterator[int]:
        for block in (0, 4, 8):  # three runs, and nothing of ours lies there
            seen.append(block)
            yield block * huge_pages.SIZE

    huge_pages._collapse(blocks())
    assert seen == [0, 4]


def test_blocks_that_follow_each_other_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    size = huge_pages.SIZE
    monkeypatch.setattr(huge_pages, "MOST_AT_ONCE", 3 * size)
    blocks = [number * size for number in (1, 2, 4, 5, 6, 7)]
    assert list(huge_pages._runs(blocks)) == [(size, 2 * size), (4 * size, 3 * size), (7 * size, size)]
    assert not list(huge_pages._runs([]))
