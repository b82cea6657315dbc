"""This machine as its operating system tells it: limits, memory, file systems, who else computes. No torch here.

What a system does not tell is None or empty: /proc and control groups are Linux's.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60  # control groups of version 1 write a number as large as this for none


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory and swap; `limit` is that of the control group (a container's), None for none."""

    total: int
    available: int
    swap_total: int
    swap_used: int
    limit: int | None


@dataclass(frozen=True)
class Busy:
    """A process of this machine and the share of a core that it takes, 1.0 being all of one."""

    pid: int
    name: str
    cores: float


def cpu_name(proc: Path = PROC) -> str:
    """The model of the processor: `AMD EPYC 7763 64-Core Processor`."""
    model = platform.processor() or platform.machine()
    lines = read_system_file(proc / "cpuinfo").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> Memory | None:
    """Main memory and swap; None where the system does not tell."""
    kilobytes = {}
    for line in read_system_file(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        kilobytes[name] = value.split()[0] if value.split() else ""
    with contextlib.suppress(KeyError, ValueError):
        total, available, swap, free = (
            int(kilobytes[name]) * 1024 for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
        )
        limit, used = (
            _number(cgroup / v2) or _number(cgroup / v1)
            for v2, v1 in (
                ("memory.max", "memory/memory.limit_in_bytes"),
                ("memory.current", "memory/memory.usage_in_bytes"),
            )
        )
        limit = limit if limit is not None and limit < total else None
        if limit is not None:
            available = min(available, max(0, limit - (used or 0)))
        return Memory(total, available, swap, swap - free, limit)
    return None


def file_system(path: Path, mounts: Path = PROC / "mounts") -> str | None:
    """The type of the file system that holds `path`, such as ext4 or tmpfs; None where the system does not tell."""
    whole, best, kind = path.resolve(), -1, None
    for line in read_system_file(mounts).splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        place = Path(fields[1].replace("\\040", " "))
        if whole.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), fields[2]
    return kind


def load_average() -> float | None:
    """Processes that want to run, averaged over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def busy_processes(seconds: float = 0.3, least: float = 0.2, proc: Path = PROC) -> list[Busy]:
    """The processes that take `least` cores or more while this one waits `seconds`, the busiest first.

    Those of its own process group, and the other ranks of its training, are left out.
    """
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    before, started = _ticks(proc), time.monotonic()
    time.sleep(seconds)
    taken, found = time.monotonic() - started, []
    for pid, (name, count) in _ticks(proc).items():
        cores = (count - before[pid][1]) / ticks / taken if pid in before else 0.0
        if cores >= least:
            found.append(Busy(pid, name, cores))
    return sorted(found, key=lambda each: -each.cores)


def _ticks(proc: Path) -> dict[int, tuple[str, int]]:
    """(name, clock ticks of CPU time so far) of each process that has nothing to do with this one."""
    found = {}
    group = os.getpgrp() if hasattr(os, "getpgrp") else None
    launcher = os.getppid() if "LOCAL_RANK" in os.environ else None
    for folder in proc.glob("[0-9]*"):
        head, _, rest = read_system_file(folder / "stat").rpartition(")")  # a name may hold parentheses and spaces
        fields = rest.split()
        pid = int(folder.name)
        if (
            len(fields) > 12
            and pid != os.getpid()
            and int(fields[2]) != group
            and launcher not in (pid, int(fields[1]))
        ):
            found[pid] = (head.partition("(")[2], int(fields[11]) + int(fields[12]))
    return found


def _number(path: Path) -> int | None:
    try:
        value = int(read_system_file(path))
    except ValueError:  # "max"
        return None
    return value if value < NO_LIMIT else None


def read_system_file(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
