"""`mmcli runs`: each run shows the metrics that its task declared, whatever they are called."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mmcli.cli import run as mmcli
from mmcli.files import atomic_folder
from mmcli.lock import file_lock
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


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Two runs with a model each, and what a killed process left in the first."""
    for label in ("a", "b"):
        run = Run.create(tmp_path, "tokenizer", label)
        with atomic_folder(run.model) as folder:
            (folder / "tokenizer.json").write_text("{}")
        run.update(state="finished")
    left = tmp_path / "0001-tokenizer-a" / ".model.7.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    return tmp_path


def test_verify_says_that_all_is_well_and_removes_what_was_left(
    sealed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = sealed / "0001-tokenizer-a" / ".model.7.tmp"
    assert mmcli(["runs", "verify", "--runs-dir", str(sealed)]) == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["name", "files", "bytes", "state"],
        ["0001-tokenizer-a", "3", shown.out.split()[6], "ok"],
        ["0002-tokenizer-b", "3", shown.out.split()[10], "ok"],
    ]
    assert shown.err == f"removed {left}, which a killed process had left\n"
    assert not left.exists()


def test_verify_leaves_a_run_alone_that_somebody_works_on(sealed: Path) -> None:
    with file_lock(sealed / "0001-tokenizer-a" / "run.lock"):
        assert mmcli(["runs", "verify", "--runs-dir", str(sealed)]) == 0
    assert (sealed / "0001-tokenizer-a" / ".model.7.tmp").exists()


def test_verify_names_damage_and_exits_by_what_was_asked(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = sealed / "0002-tokenizer-b"
    (bad / "model" / "tokenizer.json").write_text("[]")
    (bad / "run.json").write_text("[]")
    (bad / "metrics.jsonl").write_text('{"step": 0}\n{oops\n{"step": 2')
    assert mmcli(["runs", "verify", "--runs-dir", str(sealed)]) == 1
    shown = capsys.readouterr()
    assert "0001-tokenizer-a" in shown.out and "3 damaged" in shown.out
    assert mmcli(["runs", "verify", "1", "--runs-dir", str(sealed)]) == 0
    capsys.readouterr()
    assert mmcli(["runs", "verify", "2", "--runs-dir", str(sealed), "--json"]) == 2
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert (row["name"], row["whole"], row["removed"]) == ("0002-tokenizer-b", False, [])
    whats = [
        f"{bad / 'model' / 'tokenizer.json'} is damaged: bytes 0 to 1",
        f"{bad / 'run.json'} is damaged: it is not a JSON table",
        f"{bad / 'metrics.jsonl'} is damaged: line 2 is not JSON",
    ]
    assert [fault["what"] for fault in row["faults"]] == whats
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {what}" for what in whats]
    assert shown.err.count("  fix: restore it from a copy") == 3


def test_verify_misses_the_manifest_of_a_model(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sealed / "0001-tokenizer-a" / "model" / "manifest.json").unlink()
    assert mmcli(["runs", "verify", "1", "--runs-dir", str(sealed)]) == 2
    assert "model/manifest.json is missing" in capsys.readouterr().err
