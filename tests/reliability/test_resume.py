"""A run that was stopped or killed and resumed ends in the same bytes as one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ANIMALS = ("cat", "dog", "owl")
TEXT = "\n\n".join(
    f"Line {i}: the {ANIMALS[i % 3]} number {i * 7 % 101} sleeps in house {i * 13 % 17}.\n猫在第{i % 9}号屋里睡觉。"
    for i in range(400)
)
SMALL = [
    "--set",
    "model.dim=32",
    "--set",
    "model.n_layers=2",
    "--set",
    "model.n_heads=4",
    "--set",
    "model.vocab_size=400",
]
SHAPE = [*SMALL, "--seq-len", "64", "--batch-size", "4", "--micro-batch", "2", "--steps", "24"]
OFTEN = ["--set", "train.checkpoint_every=4", "--set", "train.eval_every=8", "--set", "train.sample_every=8"]


def mmcli(*argv: str, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmcli", *argv, "--runs-dir", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    path.with_name("other.txt").write_text(TEXT.replace("house", "barn"), encoding="utf-8")
    return path


EXTRA = {
    "dense with dropout": ["--set", "model.dropout=0.1", "--epochs", "3"],
    "experts, shares that change": ["--set", "model.use_moe=true", "--set", "model.dropout=0.1"],
    "muon": ["--optimizer", "muon", "--set", "model.use_moe=true", "--set", "model.dropout=0.1"],
    "compiled": ["--compile", "on", "--set", "model.dropout=0.1"],
}
SLOW = ("muon", "compiled")
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXTRA]


@pytest.fixture(scope="module", params=CASES)
def whole(
    request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The run folder of a training that was never stopped, and its command line."""
    runs = tmp_path_factory.mktemp("whole")
    data = ["--data", str(text)]
    if "shares" in request.param:
        data = ["--data", f"{text}:0.9..0.1", "--data", f"{text.with_name('other.txt')}:0.1..0.9"]
    argv = ["pretrain", *data, *SHAPE, *OFTEN, *EXTRA[request.param]]
    finish(mmcli(*argv, runs=runs))
    return runs / "0001-pretrain-tiny", argv


def losses(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("val_loss")) for line in lines]


def same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for part in (
        "model/model.safetensors",
        *(f"checkpoints/step-000024/{n}.safetensors" for n in ("weights", "optimizer")),
    ):
        assert (one / part).read_bytes() == (other / part).read_bytes(), part


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_to_the_same_bytes(
    whole: tuple[Path, list[str]], tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    run, argv = whole
    process = mmcli(*argv, runs=tmp_path)
    stopped = tmp_path / run.name
    wait_for(stopped / "checkpoints" / "step-000004", process)
    process.send_signal(sent)
    said = finish(process, code)
    if sent != signal.SIGKILL:
        assert "mmcli resume 1" in said
        assert (stopped / "model" / "config.json").is_file()
    assert json.loads((stopped / "run.json").read_text())["state"] == ("running" if code == -9 else "stopped")
    finish(mmcli("pretrain", "--resume", runs=tmp_path))
    assert json.loads((stopped / "run.json").read_text())["state"] == "finished"
    same(run, stopped)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, argv = whole
    process = mmcli(*argv, runs=tmp_path)
    stopped = tmp_path / run.name
    wait_for(stopped / "checkpoints" / "step-000008", process)
    process.kill()
    process.communicate()
    newest = sorted((stopped / "checkpoints").glob("step-*"))[-1]
    (newest / "weights.safetensors").write_bytes(b"damage")
    said = finish(mmcli("resume", runs=tmp_path))
    assert f"{newest.name}/weights.safetensors is damaged" in said
    same(run, stopped)
