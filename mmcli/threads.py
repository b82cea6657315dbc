"""The processors that this process may use, and OpenMP's environment before torch loads it."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
SPINS = "5000"  # rounds of libgomp, some tens of microseconds


def prepare_openmp() -> None:
    """Set what OpenMP reads once, when torch is loaded, unless the person has set it. Call it before that.

    Threads that wait for the next parallel region spin for a short while, then sleep. By default libgomp lets them spin
    sixty times as long, which on a machine with other work takes the core away from the very thread that they wait for;
    to sleep at once makes the steps of a small model take twice as long on an idle one
    (docs/decisions/006-waiting-threads.md). And there are no more threads than the quota of a container lets run: torch
    counts the cores of the host.
    """
    if sys.platform != "linux":
        return
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if "OMP_NUM_THREADS" not in os.environ and (threads := usable_threads()) < physical_cores():
        os.environ["OMP_NUM_THREADS"] = str(threads)


def usable_threads() -> int:
    """Threads of torch that can compute at a time: one a physical core that this process may use."""
    return _within_quota(physical_cores())


def usable_cores() -> int:
    """Cores that this process may use, two hardware threads of one counted twice."""
    return _within_quota(allowed_cores())


def cores_among(processes: int) -> int:
    """Cores for this one of `processes` of a machine, which share them unless each is bound to some of its own."""
    return max(1, usable_cores() // processes) if allowed_cores() == os.cpu_count() else usable_cores()


def allowed_cores() -> int:
    """Cores that this process may run on, whatever time a quota leaves it on them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _within_quota(cores: int) -> int:
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota + 0.01)))


def physical_cores() -> int:
    """Cores that this process may run on, two hardware threads of one counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        path = CPUS / f"cpu{cpu}/topology/thread_siblings_list"
        try:
            siblings.add(path.read_text(encoding="ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> float | None:
    """Cores' worth of time that the control groups of this process leave it, as of a container; None: no limit.

    Args:
        groups: the groups of the process, a line each: `0::/path` of version 2, `4:cpu,cpuacct:/path` of version 1.
        root: where their file systems are mounted.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        for mount in (root, root / "unified") if number == "0" else (root / controllers, root / "cpu"):
            # In a container the path may be that of the host: then its own group is the mount itself.
            group = mount / path.lstrip("/")
            while group == mount or mount in group.parents:
                if (quota := _quota(group)) is not None:
                    quotas.append(quota)
                group = group.parent
    return min(quotas, default=None)


def _quota(group: Path) -> float | None:
    """Of one group alone: `max 100000` or `200000 100000` of version 2, two files of version 1; None: no limit."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((group / f"cpu.cfs_{x}_us").read_text(encoding="ascii") for x in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):
        return None
