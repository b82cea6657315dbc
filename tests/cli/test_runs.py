"""`mmcli runs`: each run shows the metrics that its task declared, whatever they are called."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mmcli.cli import run as mmcli
from mmcli.run import Run
from mmcli.stage import Metric

METRICS = {
    "pretrain": (Metric("loss"), Metric("val_loss", label="val")),
    "grpo": (Metric("reward", ".1%"), Metric("loss", "+.2f"), Metric("val_reward", ".0%", "val")),
}
LINES = {
    "pretrain": [{"step": 0, "loss": 3.0, "val_loss": 3.1}, {"step": 1, "loss": 2.71828, "val_loss": 2.5, "lr": 0.1}],
    "grpo": [{"step": 0, "reward": 0.25, "val_reward": 0.3}, {"step": 1, "reward": 0.5234, "loss": None}],
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A pretraining, a plugin's training with a reward, and a tokenizer, which has no metrics."""
    for stage, metrics in METRICS.items():
        run = Run.create(tmp_path, stage, "test")
        run.update(state="finished", steps_done=2, metrics=[asdict(metric) for metric in metrics])
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES[stage]))
    Run.create(tmp_path, "tokenizer", "test").update(state="finished")
    return tmp_path


def test_the_list_shows_each_run_by_its_own_headline(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "list", "--runs-dir", str(runs)]) == 0
    head, pretrain, grpo, tokenizer = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "steps", "training", "held-out", "started"]
    assert "loss 2.718" in pretrain and "val 2.500" in pretrain
    assert "reward 52.3%" in grpo and "val 30%" in grpo and "loss" not in grpo
    assert tokenizer.split()[:2] == ["0003-tokenizer-test", "finished"]


def test_json_has_the_values_by_their_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "list", "--runs-dir", str(runs), "--json"]) == 0
    pretrain, grpo, tokenizer = json.loads(capsys.readouterr().out)
    assert (pretrain["loss"], pretrain["val_loss"], pretrain["steps"]) == (2.71828, 2.5, 2)
    assert (grpo["reward"], grpo["val_reward"], grpo["loss"]) == (0.5234, 0.3, None)
    assert "loss" not in tokenizer


def test_show_formats_what_was_declared_and_keeps_the_rest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "show", "2", "--runs-dir", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "reward  52.3%" in shown and "val_reward  30%" in shown and "step  1" in shown
    assert "'format'" not in shown
    assert mmcli(["runs", "show", "1", "--runs-dir", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"step": 1, "loss": 2.71828, "val_loss": 2.5, "lr": 0.1}
