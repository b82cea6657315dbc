"""The checks of an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcli.runner import load_stage
from mmcli.testing.checks import Check, attempt, check_loads, check_values
from mmcli.testing.stages import check_trainings
from mmcli.testing.tiny import SHAPE, VOCABULARY
from mmcli.testing.trainings import Trainings

if TYPE_CHECKING:
    from torch import Tensor

    from mmcli.model.transformer import Transformer

CLOSE = 1e-5  # of merged logits, relative to the largest


def check_adapter(name: str, settings: Sequence[str] = (), *, folder: Path) -> Iterator[Check]:
    """What every adapter must do, one check after the other.

    Args:
        settings: as `--adapter-set` takes them, such as ["rank=4"].
        folder: where runs and data are written.

    Raises:
        UserError: there is no such adapter.
        MmcliError: it cannot be loaded.
    """
    from mmcli.train.adapters import installed_adapter, load_adapter

    adapter = load_adapter(name)
    yield check_loads(dataclasses.asdict(installed_adapter(name)))
    yield check_values(adapter.config, [])
    yield attempt("trains its own parts alone; names and tensors stay", lambda: _own_parts(name, settings))
    yield attempt("is the same for the same seed", lambda: _same_seed(name, settings))
    yield attempt("its reference is the model without it", lambda: _reference(name, settings))
    yield attempt("merges to a plain model with the same outputs", lambda: _merged(name, settings))
    yield attempt("saves its own part", lambda: _saved(name, settings, folder))
    values = {"train.start_from": "latest:pretrain", "train.adapter": name, "train.adapter_set": list(settings)}
    yield from check_trainings(Trainings(load_stage("sft"), values, folder), refuses=False)


def _model() -> Transformer:
    from mmcli.model.config import ModelConfig
    from mmcli.model.transformer import Transformer

    config = ModelConfig(vocab_size=VOCABULARY, **SHAPE)  # type: ignore[arg-type]  # whole numbers
    return Transformer(config, seed=0).eval()


def _adapted(name: str, settings: Sequence[str], *, trained: bool = True) -> tuple[Transformer, Any]:
    """(a model with the adapter, as it might be after training, and the transform)."""
    import torch

    from mmcli.train.adapters import build_transform

    model, transform = _model(), build_transform(name, settings)
    transform.apply(model, 0)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval(), transform


def _logits(model: Any) -> Tensor:
    import numpy as np
    import torch

    from mmcli.model.attention import AttnContext

    positions_BT = np.tile(np.arange(16), (2, 1))
    ids_BT = torch.arange(32).reshape(2, 16) * 7 % VOCABULARY
    with torch.no_grad():
        hidden_BTD, _ = model(ids_BT, AttnContext.from_batch(positions_BT, positions_BT * 0))
        logits: Tensor = model.head(hidden_BTD)
    return logits


def _own_parts(name: str, settings: Sequence[str]) -> str | None:
    from mmcli.train.adapters import build_transform

    model = _model()
    before = dict(model.named_parameters())
    build_transform(name, settings).apply(model, 0)
    after = dict(model.named_parameters())
    for each, parameter in before.items():
        if after.get(each) is not parameter:
            return f"the parameter {each} of the model is gone, or another tensor"
        if parameter.requires_grad:
            return f"the parameter {each} of the model still trains"
    return None if any(each.requires_grad for each in after.values()) else "nothing is left to train"


def _same_seed(name: str, settings: Sequence[str]) -> str | None:
    import torch

    one, two = (_adapted(name, settings, trained=False)[0].state_dict() for _ in range(2))
    other = next((key for key in one if key not in two or not torch.equal(one[key], two[key])), None)
    return f"{other} differs" if other is not None else None


def _reference(name: str, settings: Sequence[str]) -> str | None:
    import torch

    expected = _logits(_model())
    model, transform = _adapted(name, settings)
    changed = _logits(model)
    if torch.equal(changed, expected):
        return "its parts change nothing in the output"
    with transform.reference(model):
        if not torch.equal(_logits(model), expected):
            return "inside reference() the outputs are not those of the model without it"
    return None if torch.equal(_logits(model), changed) else "after reference() it is no longer as before"


def _merged(name: str, settings: Sequence[str]) -> str | None:
    from mmcli.model.transformer import Transformer

    model, transform = _adapted(name, settings)
    expected = _logits(model)
    merged = transform.merge(model)
    if type(merged) is not Transformer or merged.state_dict().keys() != _model().state_dict().keys():
        return f"merge() gives no plain Transformer, but {type(merged).__name__} with other parameters"
    error = float((_logits(merged) - expected).abs().max() / expected.abs().max())
    return f"merged outputs differ by {error:.1e} of the largest" if error > CLOSE else None


def _saved(name: str, settings: Sequence[str], folder: Path) -> str | None:
    model, transform = _adapted(name, settings)
    target = folder / "adapter"
    target.mkdir(parents=True)
    transform.save(target, model)
    return None if any(target.rglob("*.safetensors")) else "save() writes no .safetensors file"
