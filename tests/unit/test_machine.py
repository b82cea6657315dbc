"""What the operating system tells of a machine, read from files as it writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli import machine

MEMINFO = "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable: 9000 kB\nSwapTotal: 4000 kB\nSwapFree: 1000 kB\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_memory_and_swap(tmp_path: Path) -> None:
    found = machine.memory(write(tmp_path, meminfo=MEMINFO), tmp_path)
    assert found == machine.Memory(16000 * 1024, 9000 * 1024, 4000 * 1024, 3000 * 1024, None)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "8192000\n", "memory.current": "8000000\n"},
        {"memory/memory.limit_in_bytes": "8192000", "memory/memory.usage_in_bytes": "8000000"},
    ],
)
def test_the_limit_of_a_container_bounds_what_is_available(tmp_path: Path, files: dict[str, str]) -> None:
    found = machine.memory(write(tmp_path, meminfo=MEMINFO), write(tmp_path, **files))
    assert found is not None and (found.limit, found.available) == (8192000, 192000)


@pytest.mark.parametrize("text", ["max", str(2**63 - 4096)])
def test_no_limit_is_none(tmp_path: Path, text: str) -> None:
    found = machine.memory(write(tmp_path, meminfo=MEMINFO), write(tmp_path, **{"memory.max": text}))
    assert found is not None and found.limit is None and found.available == 9000 * 1024


def test_a_system_that_tells_nothing_leaves_it_open(tmp_path: Path) -> None:
    assert machine.memory(tmp_path, tmp_path) is None
    assert machine.file_system(tmp_path, tmp_path / "mounts") is None
    assert machine.busy_processes(0.0, proc=tmp_path) == []


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    spaced = str(inner).replace(" ", "\\040")
    mounts = write(tmp_path, mounts=f"dev / ext4 rw 0 0\ntmp {spaced} tmpfs rw 0 0\nbroken\n") / "mounts"
    assert machine.file_system(inner / "runs", mounts) == "tmpfs"
    assert machine.file_system(tmp_path, mounts) == "ext4"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells what other processes take")
def test_another_process_that_computes_is_named_and_this_one_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as other:
        try:
            found = machine.busy_processes(0.5, least=0.05)
        finally:
            other.kill()
    assert other.pid in {each.pid for each in found} and os.getpid() not in {each.pid for each in found}
