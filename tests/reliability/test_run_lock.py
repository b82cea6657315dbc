"""A run that was killed is resumed at once, whatever became of its process; two processes never resume one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcli.lock import is_locked
from mmcli.run import LOCK, Run

TEXT = "\n\n".join(f"Line {i}: the cat number {i * 7 % 101} sleeps in house {i * 13 % 17}." for i in range(200))
SHAPE = ["model.dim=32", "model.n_layers=1", "model.n_heads=4", "model.vocab_size=400", "train.checkpoint_every=4"]
SHORT = ["--seq-len", "64", "--batch-size", "4", "--steps", "100"]
NAME = "0001-pretrain-tiny"


def mmcli(*argv: str, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmcli", *argv, "--runs-dir", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(runs: Path) -> subprocess.Popen[str]:
    """A run that was killed after its first checkpoint; its process is a zombie until it is waited for."""
    runs.mkdir()
    (runs.parent / "text.txt").write_text(TEXT)
    settings = [word for setting in SHAPE for word in ("--set", setting)]
    process = mmcli("pretrain", "--data", str(runs.parent / "text.txt"), *settings, *SHORT, runs=runs)
    while not (runs / NAME / "checkpoints" / "step-000004").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert Run(runs / NAME).info()["state"] == "running"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and not reaped
    return process


@pytest.fixture(scope="module")
def zombie(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs folder of a killed run whose process is still a zombie; a copy of it lies in ../copy."""
    runs = tmp_path_factory.mktemp("zombie") / "runs"
    process = killed(runs)
    shutil.copytree(runs, runs.parent / "copy")
    yield runs
    process.communicate()


@pytest.fixture
def runs(zombie: Path, tmp_path: Path) -> Path:
    """A copy of the killed run, as the machine would find it after a reboot."""
    return Path(shutil.copytree(zombie.parent / "copy", tmp_path / "runs"))


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


def test_a_run_whose_process_is_a_zombie_resumes_at_once(zombie: Path) -> None:
    run = Run(zombie / NAME)
    os.kill(json.loads((run.path / "run.json").read_text())["pid"], 0)  # the process is still there
    assert run.info()["state"] == "stopped"
    assert "resumed at step" in finish(mmcli("resume", runs=zombie))
    assert run.info()["state"] == "finished"


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["the first process", "this one"])
def test_a_run_whose_pid_lives_again_resumes_at_once(runs: Path, pid: int) -> None:
    run = Run(runs / NAME)
    run.update(pid=pid)
    assert json.loads((run.path / "run.json").read_text())["state"] == "running"
    assert run.info()["state"] == "stopped"
    assert "resumed at step" in finish(mmcli("pretrain", "--resume", runs=runs))
    assert run.info()["state"] == "finished"


def test_of_two_that_resume_one_run_the_second_is_refused(runs: Path) -> None:
    first = mmcli("resume", runs=runs)
    while not is_locked(runs / NAME / LOCK):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    for argv in (("resume",), ("resume", "1"), ("pretrain", "--resume")):
        second = mmcli(*argv, runs=runs)
        out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (2, "")
        assert err.splitlines() == [f"error: {NAME} is still running", "  fix: wait for it, or stop it first"]
        assert first.poll() is None, "the first has to work on while the others ask"
    assert "resumed at step" in finish(first)
    assert Run(runs / NAME).info()["state"] == "finished"


def test_of_two_that_start_together_one_resumes(runs: Path) -> None:
    both = [mmcli("resume", "1", runs=runs) for _ in range(2)]
    said = {process.wait(timeout=120): process.communicate()[1] for process in both}
    assert sorted(said) == [0, 2]
    assert f"{NAME} is still running" in said[2]
    assert Run(runs / NAME).info()["state"] == "finished"
    steps = [json.loads(line)["step"] for line in (runs / NAME / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "each step is done once"
