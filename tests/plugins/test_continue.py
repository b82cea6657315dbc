"""`mmcli continue`, installed as a package, on the shared loop: it learns new text, replays old text, and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TINY = ["model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=400", "train.eval_every=4"]
OLD = "\n\n".join(
    f"Line {i}: the {('cat', 'dog', 'owl')[i % 3]} {i * 7 % 101} sleeps in house {i % 17}." for i in range(300)
)
NEW = "\n\n".join(f"Zeile {i}: das Auto {i * 11 % 101} steht seit {i % 23} Tagen vor dem Haus." for i in range(300))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[Any, ...]]:
    return [
        tuple(line.get(key) for key in ("step", "loss", "val_loss", "val_old_loss", "tokens")) for line in lines(run)
    ]


@pytest.fixture(scope="module")
def runs(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrain run on old text, and a continue run on new text, with a checkpoint every four steps."""
    folder = tmp_path_factory.mktemp("continue")
    (folder / "old.txt").write_text(OLD)
    (folder / "new.txt").write_text(NEW)
    common = ["--seq-len", "64", "--batch-size", "8", "--micro-batch", "2", "--runs-dir", str(folder / "runs")]
    common += ["--precision", "fp32"]  # as exact on every CPU
    tiny = [word for setting in TINY for word in ("--set", setting)]
    done = real.mmcli_here("pretrain", "--data", str(folder / "old.txt"), "--steps", "16", *tiny, *common)
    assert done.returncode == 0, done.stderr
    often = ["--set", "train.checkpoint_every=4", "--set", "train.keep_checkpoints=9", "--set", "train.eval_every=4"]
    argv = ["continue", "--data", str(folder / "new.txt"), "--steps", "12", "--lr", "1e-3", *often, *common]
    done = real.mmcli_here(*argv)
    assert done.returncode == 0, done.stderr
    assert "every step: 6 rows of new text, 2 of old" in done.stderr
    assert "held-out: loss " in done.stderr
    return folder / "runs"


def test_it_learns_the_new_text_and_keeps_the_old(runs: Path) -> None:
    run = runs / "0002-continue-tiny"
    found = lines(run)
    assert [line["step"] for line in found if "val_loss" in line] == [0, 4, 8, 12]
    first, last = found[0], found[-1]
    assert last["val_loss"] < first["val_loss"] - 0.3
    assert last["val_old_loss"] < first["val_old_loss"] + 0.1
    pretrained = lines(runs / "0001-pretrain-tiny")[-1]
    assert first["val_old_loss"] == pytest.approx(pretrained["val_loss"], abs=1e-9)  # the same held-out text
    assert (run / "model" / "model.safetensors").is_file()
    info = json.loads((run / "run.json").read_text())
    assert info["parent"] == "0001-pretrain-tiny"
    assert [Path(info[key]["sources"][0]).name for key in ("data", "replay")] == ["new.txt", "old.txt"]


def test_a_run_stopped_and_resumed_ends_in_the_same_bytes(real: Any, runs: Path, tmp_path: Path) -> None:
    whole, stopped = runs / "0002-continue-tiny", tmp_path / "runs" / "0002-continue-tiny"
    shutil.copytree(runs, tmp_path / "runs")
    for late in ("checkpoints/step-000008", "checkpoints/step-000012", "model"):
        shutil.rmtree(stopped / late)
    info = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**info, "state": "stopped"}))
    done = real.mmcli_here("continue", "--resume", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stderr
    assert losses(stopped) == losses(whole)
    for name in (
        "model/model.safetensors",
        *(f"checkpoints/step-000012/{n}.safetensors" for n in ("weights", "optimizer")),
    ):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
