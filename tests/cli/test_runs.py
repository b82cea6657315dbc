"""`mmcli runs`: each run shows the metrics that its task declared, whatever they are called."""

from __future__ import annotations

import json
import re
import sys
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
    assert head.split() == ["run", "state", "steps", "training", "held-out", "size", "parent"]
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


def test_show_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path, "pretrain", "test")
    change = {"input": "data", "what": "a.txt", "before": "ab" * 32, "now": "cd" * 32}
    run.update(state="finished", data={"cache": "ef" * 32, "tokens": 7, "kind": None}, changes=[change, change])
    run.update(elapsed_seconds=1 / 3, command=["mmcli", "pretrain"])
    run.metrics.write_text(json.dumps({"step": 0, "rate": 2 / 3}) + "\n")
    assert mmcli(["runs", "show", "1", "--runs-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert not set("{}[]'") & set(shown)
    assert max(map(len, re.findall(r"[0-9a-f]+", shown.replace(str(tmp_path), "")))) <= 12
    assert "data  cache efefefefefef, tokens 7\n" in shown and "command  mmcli pretrain\n" in shown
    assert shown.count("input data, what a.txt, before abababababab, now cdcdcdcdcdcd") == 2
    assert "rate  0.666667" in shown and "elapsed_seconds  0.333333" in shown


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


def test_plot_in_the_terminal_and_into_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mmcli(["runs", "plot", "1", "2", "--runs-dir", str(runs), "--width", "60"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert all(len(row) <= 60 for row in rows[:18])
    assert rows[18:] == [
        "a 0001-pretrain-test loss 2.718",
        "A 0001-pretrain-test val 2.500",
        "b 0002-grpo-test reward 52.3%",
        "B 0002-grpo-test val 30%",
    ]
    assert mmcli(["runs", "plot", "1", "--runs-dir", str(runs), "--svg", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert mmcli(["runs", "plot", "1", "--runs-dir", str(runs), "--png", str(tmp_path / "a.png")]) == 2
    assert 'pip install "mmcli[png]"' in capsys.readouterr().err
    assert mmcli(["runs", "plot", "1", "--runs-dir", str(runs), "--x", "epochs"]) == 2
    assert mmcli(["runs", "plot", "3", "--runs-dir", str(runs)]) == 2
    assert mmcli(["runs", "plot", "1", "--runs-dir", str(runs), "--svg", str(tmp_path / "none" / "a.svg")]) == 2
    assert capsys.readouterr().err.count("error:") == 3


def test_png_is_drawn_by_matplotlib(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="PNG files need the extra mmcli[png]")
    assert mmcli(["runs", "plot", "1", "--runs-dir", str(runs), "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_compare_says_what_differs_and_what_came_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "compare", "1", "2", "--runs-dir", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["0001-pretrain-test", "0002-grpo-test"]
    assert found["config"] == {"stage": ["pretrain", "grpo"]}
    assert found["results"]["loss"] == [2.71828, None]
    assert mmcli(["runs", "compare", "1", "1", "--runs-dir", str(runs)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_remove_asks_and_says_what_it_freed(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["runs", "remove", "1", "0001-tokenizer-a", "--runs-dir", str(sealed)]
    assert mmcli(command) == 2  # nobody to ask
    assert "add --yes" in capsys.readouterr().err and (sealed / "0001-tokenizer-a").is_dir()
    assert mmcli([*command, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["0001-tokenizer-a"]
    assert not (sealed / "0001-tokenizer-a").exists() and (sealed / "0002-tokenizer-b").is_dir()


def test_rename_and_prune(sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "rename", "1", "c", "--runs-dir", str(sealed)]) == 0
    assert capsys.readouterr().out == "0001-tokenizer-a is now 0001-tokenizer-c\n"
    for step in (1, 2):
        with atomic_folder(sealed / "0002-tokenizer-b" / "checkpoints" / f"step-00000{step}") as folder:
            for name in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
                (folder / name).write_text("{}")
    Run(sealed / "0002-tokenizer-b").update(state="stopped")
    with file_lock(sealed / "0001-tokenizer-c" / "run.lock"):
        assert mmcli(["runs", "prune", "--runs-dir", str(sealed), "--dry-run"]) == 0
    assert "would remove step-000001" in capsys.readouterr().out
    assert mmcli(["runs", "prune", "2", "--runs-dir", str(sealed), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["removed"], row["kept"], row["bytes"] > 0) == (["step-000001"], ["step-000002"], True)
    assert mmcli(["runs", "prune", "--runs-dir", str(sealed)]) == 0
    assert capsys.readouterr().out == "no checkpoint to remove\n"


def test_report_writes_the_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["runs", "report", "2", "--runs-dir", str(runs)]) == 0
    path = runs / "0002-grpo-test" / "report.html"
    assert capsys.readouterr().out == f"{path}\n" and "reward" in path.read_text(encoding="utf-8")
    other = tmp_path / "r.html"
    assert mmcli(["runs", "report", "1", "--runs-dir", str(runs), "-o", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "0001-pretrain-test", "report": str(other)}
    assert mmcli(["runs", "report", "1", "--runs-dir", str(runs), "-o", str(tmp_path / "none" / "r.html")]) == 2
