"""The optimizer and its parameter groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcli.train.config import OptimConfig
from mmcli.train.muon import Muon, build_adamw

Role = Literal["hidden", "embedding", "head", "vector", "other"]


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """Fused AdamW, or Muon for the hidden matrices and AdamW for the rest.

    Matrices decay; norms and biases do not. A group's `lr_factor` is its rate as a multiple of the step's (see
    `set_learning_rate`).

    Args:
        dtype: of Muon's matrix products; bf16 is for devices where such products are fast.
    """
    groups = parameter_groups(model, config)
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, momentum=config.momentum, betas=betas, eps=config.eps, dtype=dtype)
    return build_adamw(groups, lr=config.lr, betas=betas, eps=config.eps)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Every parameter that trains, once, in groups by role; groups without parameters are left out."""
    members: dict[Role, list[Tensor]] = {"hidden": [], "embedding": [], "head": [], "vector": [], "other": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[role_of(name, parameter)].append(parameter)
    factors = {
        "embedding": config.embedding_lr_factor,
        "head": config.head_lr_factor,
        "vector": config.vector_lr_factor,
    }
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if role == "vector" else config.weight_decay,
            "lr_factor": factors.get(role, 1.0),
            "muon": config.optimizer == "muon" and role == "hidden",
        }
        for role, parameters in members.items()
        if parameters
    ]


def role_of(name: str, parameter: Tensor) -> Role:
    """What a parameter is in the model; `other` are the router and what an adapter adds.

    Hidden matrices are `..._proj.weight` [out, in] and stacked experts `..._proj` [E, out, in].
    """
    *_, owner, leaf = ("", *name.split("."))
    if parameter.dim() < 2:
        return "vector"
    if owner.startswith("embed_"):
        return "embedding"
    if owner == "lm_head":
        return "head"
    return "hidden" if leaf.endswith("_proj") or (owner.endswith("_proj") and leaf == "weight") else "other"


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


@contextlib.contextmanager
def undone(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A trial: steps taken inside start with no state, and leave parameters and state as they were, bit for bit.

    It holds a copy of the parameters meanwhile. Gradients are not restored.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values, state = [parameter.detach().clone() for parameter in parameters], dict(optimizer.state)
    optimizer.state.clear()  # in place: Muon's AdamW shares it
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
