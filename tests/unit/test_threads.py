"""The processors that a process may use, and what OpenMP is told before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli import threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups and libgomp are Linux's")


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    """(the groups of a process, where their file systems are mounted), both to be filled."""
    (tmp_path / "cgroup").write_text("")
    (tmp_path / "mount").mkdir()
    return tmp_path / "cgroup", tmp_path / "mount"


def test_the_least_quota_above_a_group_counts(groups: tuple[Path, Path]) -> None:
    listed, mount = groups
    listed.write_text("0::/a/b\n")
    (mount / "a/b").mkdir(parents=True)
    (mount / "a/b/cpu.max").write_text("max 100000\n")
    assert threads.cpu_quota(listed, mount) is None
    (mount / "a/cpu.max").write_text("250000 100000\n")
    (mount / "cpu.max").write_text("800000 100000\n")
    assert threads.cpu_quota(listed, mount) == 2.5


def test_the_first_version_of_control_groups(groups: tuple[Path, Path]) -> None:
    listed, mount = groups
    listed.write_text("5:memory:/x\n4:cpu,cpuacct:/docker/abc\n")
    (mount / "cpu,cpuacct").mkdir()  # in a container: its group is the mount, the path is that of the host
    for name, value in (("quota", "200000"), ("period", "100000")):
        (mount / f"cpu,cpuacct/cpu.cfs_{name}_us").write_text(value + "\n")
    assert threads.cpu_quota(listed, mount) == 2.0
    (mount / "cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert threads.cpu_quota(listed, mount) is None


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert threads.cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(2.0, 2), (0.5, 1), (3.9, 3), (None, 64), (100.0, 64)])
def test_a_container_with_two_cores_on_a_host_of_64_uses_two_threads(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(threads, "physical_cores", lambda: 64)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.usable_threads() == expected
    threads.prepare_openmp()
    assert os.environ.get("OMP_NUM_THREADS") == (str(expected) if expected < 64 else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # what the person says holds
    threads.prepare_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_two_hardware_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert threads.physical_cores() == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, f"None {threads.SPINS}"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "9"}, "None 9"),
    ],
)
def test_a_command_lets_waiting_threads_spin_for_a_short_while_unless_told_otherwise(
    given: dict[str, str], expected: str
) -> None:
    """The environment of a whole process, as torch finds it."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    script = (
        "import os, sys, mmcli.cli\n"
        "assert 'torch' not in sys.modules\n"
        "mmcli.cli.run = lambda argv: print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))\n"
        "mmcli.cli.main([])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**environment, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
