"""Training checkpoints: checkpoints/step-000500/ with weights, optimizer and counters, whole or absent.

Everything is safetensors or JSON. The state of data and dropout is the step number itself.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmcli.errors import MmcliError, UserError
from mmcli.files import atomic_folder
from mmcli.manifest import damage
from mmcli.run import CHECKPOINT_FILES
from mmcli.stage import Reporter
from mmcli.train.shard import local, part, split

WEIGHTS, MOMENTS, PROGRESS = CHECKPOINT_FILES
_NAME = re.compile(r"^step-(\d+)$")


@dataclass
class Progress:
    """Position of a training."""

    step: int = 0  # updates done
    tokens: int = 0  # tokens seen, padding not counted
    elapsed_seconds: float = 0.0  # time in the loop, over all resumes
    skipped: int = 0  # steps without an update, since their loss or gradient was not finite

    def stored(self) -> dict[str, Any]:
        """As in progress.json: without what has not happened."""
        values = asdict(self)
        if self.skipped == 0:
            del values["skipped"]
        return values


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
) -> Path:
    """Write `folder`/step-NNNNNN and remove all but the newest `keep` and this one."""
    path = _path(folder, progress.step)
    with atomic_folder(path) as beside:
        save_file(_trained(model), beside / WEIGHTS)
        save_file(_moments(model, optimizer), beside / MOMENTS)
        (beside / PROGRESS).write_text(json.dumps(progress.stored()), encoding="utf-8")
    for old in list_checkpoints(folder)[:-keep]:
        if old != path:
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
    """Checkpoint folders by their steps, the oldest first; unfinished ones are not among them."""
    found = [path for path in folder.glob("step-*") if _NAME.match(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of updates done before a checkpoint folder was written."""
    return int(path.name.removeprefix("step-"))


def load_newest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, report: Reporter) -> Progress | None:
    """Load the newest whole checkpoint; damaged ones are named and passed over. None if there is none.

    Raises:
        UserError: every one is damaged.
        MmcliError: it is of another model.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        problem = damage(path, needed=CHECKPOINT_FILES)
        if problem is None:
            return _load(path, model, optimizer)
        report.warn(f"{problem}; trying an older checkpoint")
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged", "restore one from a copy, or start a new run")
    return None


def load_step(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the checkpoint after `step` updates, which another process has found to be whole."""
    optimizer.state.clear()
    return _load(_path(folder, step), model, optimizer)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    weights = load_file(path / WEIGHTS)
    moments = load_file(path / MOMENTS)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(parameters) != set(weights):
        name = sorted(set(parameters) ^ set(weights))[0]
        raise MmcliError(f"{path} does not fit the model: {name}", "its config.toml was changed; start a new run")
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(part(weights[name], parameter))
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        state: dict[str, Any] = optimizer.state[parameters[name]]
        state[kind] = split(value.to(parameters[name].device), parameters[name])
    progress: dict[str, Any] = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    progress.pop("held_out", None)  # of earlier versions
    return Progress(**progress)
