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

from mmcli.errors import UserError
from mmcli.find import find_language_model
from mmcli.plugins import Plugin
from mmcli.serve.models import open_adapter, open_model
from mmcli.stages import pairs as stage_pairs
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


def test_training_goes_on_from_an_adapter(real: Any, folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(folder / "runs", runs)
    adapter = runs / "0002-pretrain-lora" / "adapter"
    common = ["pretrain", "--data", str(folder / "text.txt"), "--seq-len", "64", "--batch-size", "4"]
    common += ["--runs-dir", str(runs), "--from", "1", "--adapter", "lora", "--adapter-set", f"adapter_from={adapter}"]
    done = real.mmcli_here(*common, "--steps", "1", "--lr", "1e-6")
    assert done.returncode == 0, done.stderr
    before, after = (
        [each["val_loss"] for line in (run / "metrics.jsonl").open() if "val_loss" in (each := json.loads(line))]
        for run in sorted(runs.glob("000[23]*"))
    )
    assert after[0] == pytest.approx(before[-1], abs=2e-2) and after[0] < before[0]
    about = [json.loads((run / "adapter" / "adapter_config.json").read_text()) for run in sorted(runs.glob("000[23]*"))]
    assert [each["r"] for each in about] == [4, 4]

    run = max(runs.glob("0003*"))
    (run / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), "state": "stopped"}))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: each + 1 for name, each in weights.items()}, adapter / "adapter_model.safetensors")
    done = real.mmcli_here("resume", "3", "--runs-dir", str(runs))
    assert done.returncode == 2
    assert "changed since it began: adapter_from: adapter_model.safetensors was " in done.stderr


def test_preference_training_loads_no_second_model(
    real: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("a second model was loaded")

    runs, pairs = tmp_path / "runs", tmp_path / "pairs.jsonl"
    shutil.copytree(folder / "runs", runs)
    for i in range(8):
        chosen, rejected = (
            [{"role": "user", "content": f"House {i}?"}, {"role": "assistant", "content": each}]
            for each in ("cat", "dog")
        )
        with pairs.open("a") as file:
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    monkeypatch.setattr(stage_pairs, "load_model", loads)
    adapter = runs / "0002-pretrain-lora" / "adapter"
    common = ["dpo", "--data", str(pairs), "--seq-len", "64", "--batch-size", "2", "--steps", "1", "--lr", "1e-9"]
    common += ["--from", "1", "--runs-dir", str(runs), "--adapter", "lora"]
    for more in ([], ["--adapter-set", f"adapter_from={adapter}"]):
        done = real.mmcli_here(*common, *more)
        assert done.returncode == 0, done.stderr
        first = json.loads((max(runs.glob("0*-dpo*")) / "metrics.jsonl").read_text().splitlines()[0])
        assert first["margin"] == pytest.approx(0, abs=1e-5)  # the reference is the model that the training starts from


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--from", "1", "--adapter", "lora", "--adapter-set", "adapter_from=nowhere"],
            "there is no adapter_config.json in nowhere",
        ),
        (["--from", "1", *LORA, "--adapter-set", "adapter_from=x"], "rank = 4 beside adapter_from = x"),
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


def test_adapters_are_served_beside_their_model_over_its_weights(real: Any, see: Any, folder: Path) -> None:
    see(real)
    ref = find_language_model("1", folder / "runs")
    adapter = folder / "runs" / "0002-pretrain-lora" / "adapter"
    base = open_model(ref, "torch", device="cpu", slots=2, max_len=48, queue=1)
    tutor = open_adapter(base, ref, "tutor", adapter, queue=1)
    merged = open_model(find_language_model("2", folder / "runs"), "torch", device="cpu", slots=1, max_len=48, queue=1)
    try:
        assert (tutor.name, tutor.chat, tutor.engine.slots, tutor.engine.max_len) == ("tutor", False, 2, 48)
        weights, shared = ((each.engine.model.state_dict()) for each in (base, tutor))
        assert {name for name in shared if ".lora_" not in name} == set(weights)
        assert all(weights[name].data_ptr() == shared[name].data_ptr() for name in weights)
        plain, adapted, whole = (each.engine.prefill(0, [5, 6, 7, 8]) for each in (base, tutor, merged))
        assert adapted == pytest.approx(whole, abs=1e-4) and abs(adapted - plain).max() > 1e-2
        assert (base.engine.prefill(1, [5, 6, 7, 8]) == plain).all()
        with pytest.raises(UserError, match=r"there is no adapter_config\.json"):
            open_adapter(base, ref, "tutor", folder, queue=1)
        other = folder / "other"
        other.mkdir()
        (other / "adapter_config.json").write_text('{"peft_type": "IA3"}')
        with pytest.raises(UserError, match='no adapter "ia3"'):
            open_adapter(base, ref, "tutor", other, queue=1)
    finally:
        for each in (base, tutor, merged):
            each.scheduler.drain(0)
