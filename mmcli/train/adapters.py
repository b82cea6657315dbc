"""Adapters, given by packages: a transform of the model that any training stage can use, or that a served model has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcli.config import Layer, parse_set, resolve
from mmcli.errors import MmcliError, UserError, did_you_mean
from mmcli.model.count import forward_flops_per_token, training_flops_per_token
from mmcli.model.transformer import Transformer
from mmcli.plugins import Plugin, contained, installed, load, load_function
from mmcli.stage import Adapter, StageContext, Transform

ADAPTER_CONFIG = "adapter_config.json"  # of PEFT's layout
INSTALL = "install a package that has one, such as LoRA from mmcli's repository: pip install ./plugins/mmcli-lora"


def installed_adapter(name: str) -> Plugin:
    """The entry point of an adapter, by its name.

    Raises:
        UserError: there is none.
    """
    found = {plugin.name: plugin for plugin in installed() if plugin.kind == "adapter"}
    if name not in found:
        fix = did_you_mean(name, list(found)) if found else INSTALL
        raise UserError(f'there is no adapter "{name}"', fix)
    return found[name]


def load_adapter(name: str) -> Adapter:
    """The adapter of this name.

    Raises:
        UserError: there is none, or several packages claim the name.
        MmcliError: it is there and broken.
    """
    return load(installed_adapter(name), Adapter)


def adapter_config(name: str, settings: Sequence[str]) -> Any:
    """The config of an adapter, filled from `--adapter-set key=value`.

    Raises:
        UserError: no such adapter, an unknown key or a wrong value.
        MmcliError: the adapter is broken.
    """
    for setting in settings:
        if "=" not in setting:
            raise UserError(f'--adapter-set "{setting}" is not key=value', "write it like: --adapter-set rank=16")
    return resolve(load_adapter(name).config, [Layer("--adapter-set", parse_set(settings).values)]).config


def build_transform(name: str, settings: Sequence[str]) -> Transform:
    """The transform of an adapter, filled from `--adapter-set key=value`.

    Raises:
        UserError: no such adapter, an unknown key or a wrong value.
        MmcliError: the adapter is broken.
    """
    config, adapter = adapter_config(name, settings), load_adapter(name)
    build = load_function(adapter.build, f'adapter "{name}"')
    with contained(f'adapter "{name}" cannot be built', "check its --adapter-set values; `--debug` shows where"):
        transform: Transform = build(config)
    return transform


def adapt(model: nn.Module, name: str, settings: Sequence[str], *, seed: int, context: StageContext) -> Transform:
    """Apply an adapter to `model` in place: from now on only the adapter's parts train.

    A checkpoint holds only those parts, so a resumed run must find the weights beneath them as they were: whoever loads
    `model` compares them (`mmcli.stages.start`).

    Raises:
        UserError: the adapter cannot be had (see `build_transform`).
        MmcliError: the adapter leaves nothing to train.
    """
    transform = build_transform(name, settings)
    transform.apply(model, seed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise MmcliError(f'adapter "{name}" leaves nothing to train', "check its --adapter-set values")
    total = sum(p.numel() for p in model.parameters())
    context.report.note(f"adapter: {name}, {trained:,} of {total:,} parameters train")
    return transform


def with_adapter(model: Transformer, folder: Path) -> Transformer:
    """A model in eval mode that computes with the adapter of a folder in PEFT's layout.

    It shares the tensors of all weights with `model`, which stays as it is. The adapter is the installed one whose name
    is the `peft_type` of the folder.

    Raises:
        UserError: no adapter there, one of a kind that is not installed, or of another model.
    """
    file = folder / ADAPTER_CONFIG
    try:
        kind = str(json.loads(file.read_text(encoding="utf-8"))["peft_type"]).lower()
    except OSError:
        fix = "give the folder adapter/ of a run, such as runs/0004-sft/adapter"
        raise UserError(f"there is no {ADAPTER_CONFIG} in {folder}", fix) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} names no peft_type", "restore it from a copy") from None
    with torch.device("meta"):
        shared = Transformer(model.config)
    shared.load_state_dict(model.state_dict(), assign=True)
    build_transform(kind, [f"adapter_from={folder.resolve()}"]).apply(shared, seed=0)
    return shared.eval()


def training_flops(model: Transformer, seq_len: int) -> int:
    """FLOPs of a token's forward and backward pass, the mean over a row of `seq_len` tokens.

    Three times the forward pass (see `count.training_flops_per_token`); frozen weights need no gradient of their own,
    which is one pass less through the matrices, and an adapter's matrices take three passes too.
    """
    config = model.config
    whole = training_flops_per_token(config, seq_len)
    if model.head_weight.requires_grad:
        return whole
    seeing_itself = 2 * config.n_layers * config.n_heads * config.d_head
    matrices = forward_flops_per_token(config, 1) - seeing_itself
    added = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    stacked = sum(p.numel() for p in added if p.dim() == 3)  # [E, ...], of which a token meets its k experts
    met = stacked * config.num_experts_per_tok // config.n_routed_experts if stacked else 0
    return whole - matrices + 6 * (sum(p.numel() for p in added) - stacked + met)
