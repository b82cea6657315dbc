"""`--adapter lora` on a training stage: the run has a merged model and the adapter alone, and resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcli.plugins import Plugin
from mmcli.stages import pins
from mmcli.train.adapters import installed_adapter

TEXT = "\n\n".join(
    f"Line {i}: the {('cat', 'dog', 'owl')[i % 3]} {i * 7 % 101} sleeps in house {i % 17}." for i in range(300)
)
TINY = ["model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=400"]
OFTEN = ["train.checkpoint_every=2", "train.keep_checkpoints=9"]
LORA = ["--adapter", "lora", "--adapter-set", "rank=4", "--adapter-set", "dropout=0.1"]


def settings(assignments: list[str]) -> list[str]:
    return [word for each in assignments for word in ("--set", each)]


@pytest.fixture(scope="module")
def folder(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: a pretrained model, and one trained on from it with LoRA, on the same text."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "text.txt").write_text(TEXT)
    common = ["pretrain", "--data", str(folder / "text.txt"), "--seq-len", "64", "--batch-size", "4"]
    common += ["--runs-dir", str(folder / "runs")]
    for argv in (
        ["--steps", "8", "--lr", "2e-3", *settings(TINY)],
        ["--steps", "6", "--from", "1", "--lr", "1e-2", "--name", "lora", *LORA, *settings(OFTEN)],
    ):
        done = real.mmcli_here(*common, *argv)
        assert done.returncode == 0, done.stderr
    assert "adapter: lora, " in done.stderr
    return folder


def test_the_model_is_merged_and_the_adapter_saved_alone(folder: Path) -> None:
    runs = folder / "runs"
    base, merged = (
        load_file(runs / name / "model" / "model.safetensors") for name in ("0001-pretrain-tiny", "0002-pretrain-lora")
    )
    own = load_file(runs / "0002-pretrain-lora" / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in own}
    for name, weight in base.items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            a, b = (own[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            assert not torch.equal(merged[name], weight)
            torch.testing.assert_close(merged[name], weight + 16.0 / 4 * b @ a)
        else:
            assert torch.equal(merged[name], weight), name


def test_it_learns_and_the_checkpoint_holds_the_adapter_alone(folder: Path) -> None:
    run = folder / "runs" / "0002-pretrain-lora"
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found[-1]["val_loss"] < found[0]["val_loss"]
    weights = load_file(run / "checkpoints" / "step-000006" / "weights.safetensors")
    assert all(".lora_" in name for name in weights)


def test_a_resumed_run_ends_in_the_same_bytes(real: Any, folder: Path, tmp_path: Path) -> None:
    whole, stopped = folder / "runs" / "0002-pretrain-lora", stop(folder, tmp_path / "runs")
    done = real.mmcli_here("resume", "2", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stderr
    for name in (
        "model/model.safetensors",
        "adapter/adapter_model.safetensors",
        "checkpoints/step-000006/optimizer.safetensors",
    ):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def stop(folder: Path, copy: Path) -> Path:
    """A copy of the runs in which the one with LoRA was stopped after two steps; its folder."""
    shutil.copytree(folder / "runs", copy)
    stopped = copy / "0002-pretrain-lora"
    for late in ("checkpoints/step-000004", "checkpoints/step-000006", "model", "adapter"):
        shutil.rmtree(stopped / late)
    info = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**info, "state": "stopped"}))
    return stopped


def test_a_resumed_run_needs_the_weights_beneath_as_they_were(real: Any, folder: Path, tmp_path: Path) -> None:
    stop(folder, tmp_path / "runs")
    model = tmp_path / "runs" / "0001-pretrain-tiny" / "model"
    weights = load_file(model / "model.safetensors")
    save_file({name: each + 1 for name, each in weights.items()}, model / "model.safetensors", {"format": "pt"})
    (model / "manifest.json").unlink()
    done = real.mmcli_here("resume", "2", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "the starting model of 0002-pretrain-lora changed since it began: model.safetensors was " in done.stderr
    shutil.rmtree(model)
    done = real.mmcli_here("resume", "2", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "is gone, and what 0002-pretrain-lora has saved does not hold its weights" in done.stderr


def test_a_resumed_run_needs_the_adapter_as_it_was(
    real: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newer(name: str) -> Plugin:
        return dataclasses.replace(installed_adapter(name), version="99")

    stop(folder, tmp_path / "runs")
    monkeypatch.setattr(pins, "installed_adapter", newer)
    done = real.mmcli_here("resume", "2", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "the adapter of 0002-pretrain-lora changed since it began: version was " in done.stderr
    assert "is 99" in done.stderr
    allowed = ["--allow-change", "adapter", "--runs-dir", str(tmp_path / "runs")]
    assert real.mmcli_here("resume", "2", *allowed).returncode == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--from", "1", "--adapter-set", "rank=4"], "without an adapter"),
        (["--adapter", "lora"], "a new model"),
        (["--from", "1", "--adapter", "lorra"], 'there is no adapter "lorra"'),
    ],
)
def test_what_makes_no_sense_is_refused(real: Any, folder: Path, argv: list[str], said: str) -> None:
    before = sorted((folder / "runs").iterdir())
    done = real.mmcli_here("pretrain", "--data", str(folder / "text.txt"), *argv, "--runs-dir", str(folder / "runs"))
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted((folder / "runs").iterdir()) == before
