"""Checkpoints are whole or absent, hold what trains, and give it back to the bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmcli.errors import MmcliError
from mmcli.files import write_json
from mmcli.stage import Silent
from mmcli.train.checkpoint import Progress, checkpoint_step, list_checkpoints, load_newest, save_checkpoint
from mmcli.train.config import OptimConfig
from mmcli.train.optim import build_optimizer


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def trained(seed: int, updates: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(lr=0.1))
    for _ in range(updates):
        update(model, optimizer)
    return model, optimizer


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_loaded_checkpoint_trains_on_to_the_same_bytes(tmp_path: Path) -> None:
    model, optimizer = trained(0, 3)
    progress = Progress(step=3, tokens=70, elapsed_seconds=1.5)
    save_checkpoint(tmp_path, model, optimizer, progress, keep=2)
    other, its_optimizer = trained(1, 0)
    with torch.no_grad():
        other[0].bias.copy_(model[0].bias)  # type: ignore[index]  # frozen: it comes from where the run started
    assert load_newest(tmp_path, other, its_optimizer, Silent()) == progress
    for each, its in ((model, optimizer), (other, its_optimizer)):
        update(each, its)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_holds_what_trains_and_nothing_that_is_frozen(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, *trained(0, 1), Progress(step=1), keep=1)
    assert path.name == "step-000001"
    names = {"0.weight", "1.weight", "1.bias"}
    assert set(load_file(path / "weights.safetensors")) == names
    moments = {f"{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names}
    assert set(load_file(path / "optimizer.safetensors")) == moments
    assert json.loads((path / "progress.json").read_text()) == {"step": 1, "tokens": 0, "elapsed_seconds": 0.0}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        save_checkpoint(tmp_path, *trained(0, 0), Progress(step=step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000020"]


def test_they_are_ordered_by_number_past_a_million_steps(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        assert save_checkpoint(tmp_path, *trained(0, 0), Progress(step=step), keep=2).is_dir()
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [1_000_000, 1_000_001]
    assert load_newest(tmp_path, *trained(0, 0), Silent()) == Progress(step=1_000_001)


def test_the_one_just_written_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *trained(0, 0), Progress(step=3), keep=1)
    (tmp_path / "step-000009").mkdir()  # damaged, which a resume passed over
    save_checkpoint(tmp_path, *trained(0, 0), Progress(step=4), keep=1)
    assert load_newest(tmp_path, *trained(0, 0), Silent()) == Progress(step=4)


def test_progress_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, *trained(0, 0), Progress(step=3), keep=1)
    progress, manifest = path / "progress.json", path / "manifest.json"
    before = hashlib.sha256(progress.read_bytes()).hexdigest()
    write_json(progress, {**json.loads(progress.read_text()), "held_out": 2.5})
    manifest.write_text(manifest.read_text().replace(before, hashlib.sha256(progress.read_bytes()).hexdigest()))
    assert load_newest(tmp_path, *trained(0, 0), Silent()) == Progress(step=3)


def test_a_manifest_that_names_nothing_is_damage(tmp_path: Path) -> None:
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, *trained(0, step), Progress(step=step), keep=2)
    report = Warnings()
    stored = json.loads((newest / "manifest.json").read_text())
    del stored["optimizer.safetensors"]
    for manifest, problem in (({}, "names no file"), (stored, "does not name optimizer.safetensors")):
        write_json(newest / "manifest.json", manifest)
        assert load_newest(tmp_path, *trained(1, 0), report) == Progress(step=1)
        assert f"step-000002/manifest.json {problem}" in report.said[-1]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_damaged_one_is_named_and_passed_over(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, *trained(0, step), Progress(step=step), keep=2)
    data = bytearray((newest / name).read_bytes())
    data[-1] ^= 1
    (newest / name).write_bytes(data)
    report = Warnings()
    assert load_newest(tmp_path, *trained(1, 0), report) == Progress(step=1)
    assert len(report.said) == 1 and f"step-000002/{name} is damaged" in report.said[0]
    (newest.parent / "step-000001" / name).unlink()
    with pytest.raises(MmcliError, match=r"every checkpoint in .* is damaged"):
        load_newest(tmp_path, *trained(1, 0), report)


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    (tmp_path / ".step-000001.new").mkdir()  # of a process that was killed while it saved
    assert load_newest(tmp_path, *trained(0, 0), Silent()) is None


def test_one_of_another_model_is_refused_by_the_name_of_a_parameter(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *trained(0, 1), Progress(step=1), keep=1)
    wider = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 1))
    wider[0].bias.requires_grad_(False)
    with pytest.raises(MmcliError, match=r"does not fit the model: 2\.bias"):
        load_newest(tmp_path, wider, build_optimizer(wider, OptimConfig()), Silent())
