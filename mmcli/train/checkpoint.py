"""Training checkpoints: checkpoints/step-000500/ with weights, optimizer and counters, whole or absent.

Everything is safetensors or JSON. The state of data and dropout is the step number itself.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmcli.errors import MmcliError
from mmcli.files import atomic_folder, damage
from mmcli.stage import Reporter


@dataclass
class Progress:
    """Position of a training."""

    step: int = 0  # updates done
    tokens: int = 0  # tokens seen, padding not counted
    elapsed_seconds: float = 0.0  # time in the loop, over all resumes


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Write `folder`/step-NNNNNN and remove all but the newest `keep`."""
    path = folder / f"step-{progress.step:06d}"
    with atomic_folder(path) as beside:
        save_file(_trained(model), beside / "weights.safetensors")
        save_file(_moments(model, optimizer), beside / "optimizer.safetensors")
        (beside / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name; a tied one once."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    moments = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{key}.{name}"] = torch.as_tensor(value).detach().contiguous()
    return moments


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the oldest first; unfinished ones are not among them."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_newest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, report: Reporter) -> Progress | None:
    """Load the newest whole checkpoint; damaged ones are named and passed over. None if there is none."""
    found = list_checkpoints(folder)
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            return _load(path, model, optimizer)
        report.warn(f"{problem}; trying an older checkpoint")
    if found:
        raise MmcliError(f"every checkpoint in {folder} is damaged", "start the run again")
    return None


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    weights = load_file(path / "weights.safetensors")
    moments = load_file(path / "optimizer.safetensors")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(parameters) != set(weights):
        name = sorted(set(parameters) ^ set(weights))[0]
        raise MmcliError(f"{path} does not fit the model: {name}", "its config.toml was changed; start a new run")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        state: dict[str, Any] = optimizer.state[parameters[name]]
        state[kind] = value.to(parameters[name].device)
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return Progress(**progress)
