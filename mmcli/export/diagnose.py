"""Where an exported graph first departs from torch: both run once more, with the stream after every part kept.

Shapes: T tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mmcli.export.decoder import FINAL_NORM, embedding_name, residual_name
from mmcli.export.locate import graph_file
from mmcli.export.rerun import Rerun
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Block, Transformer

TOLERANCE = 1e-4  # relative to the largest number of the stream: far above rounding, far below a wrong operator


def first_difference(folder: Path, model: Transformer, ids: Sequence[int], split: int, *, exact: bool) -> str:
    """In words, the first place where the export in `folder` differs from `model`.

    Args:
        ids: what both read; the first `split` of them are in the cache when the others, which are compared, are run.
        exact: fp32: the first place that differs at all. Else every place does: the one where the error grows most.
    """
    places = _places(model.config)
    by_torch = _run_torch(model, ids, split)
    by_onnx = _run_onnx(folder, model.config, list(places), ids, split)
    errors = {name: _relative_error(by_torch[name], by_onnx[name], exact) for name in [*places, "logits"]}
    if not exact:
        growth = {name: error - before for (name, error), before in zip(errors.items(), _shifted(errors), strict=True)}
        worst = max(growth, key=lambda name: (math.isnan(growth[name]), growth[name]))
        return f"the error grows most in {places.get(worst, 'the output head')}"
    for name, error in errors.items():
        if not error <= TOLERANCE:
            size = float(np.abs(by_torch[name] - by_onnx[name]).max())
            return f"the first to differ is {places.get(name, 'the output head')} (by {size:.2g})"
    return "no layer differs when the graph runs by itself, so the fault is in how the cache is kept"


def _shifted(errors: dict[str, float]) -> list[float]:
    return [0.0, *list(errors.values())[:-1]]


def _places(config: ModelConfig) -> dict[str, str]:
    """Name of a tensor in the graph -> what it is in words, in the order of the computation."""
    places = {embedding_name(config): "the embedding"}
    ffn = "experts" if config.use_moe else "feed-forward"
    for layer in range(config.n_layers):
        if config.parallel_block:
            places[residual_name(layer, "block")] = f"layer {layer}"
        else:
            places[residual_name(layer, "attention")] = f"layer {layer} (attention)"
            places[residual_name(layer, "ffn")] = f"layer {layer} ({ffn})"
    return {**places, FINAL_NORM: "the final norm"}


def _relative_error(a: np.ndarray, b: np.ndarray, exact: bool) -> float:
    """Greatest difference over the greatest number; the same of root mean squares where not `exact`."""
    error = a.astype(np.float64) - b
    if exact:
        return float(np.abs(error).max() / max(1.0, float(np.abs(a).max())))
    return float(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(a.astype(np.float64) ** 2)))


@torch.inference_mode()
def _run_torch(model: Transformer, ids: Sequence[int], split: int) -> dict[str, np.ndarray]:
    """The stream [T, D] after every place, and the logits, for the ids after `split`."""
    kept: dict[str, np.ndarray] = {}

    def keep(name: str, value: Any) -> None:
        kept[name] = value[0].float().cpu().numpy()

    config = model.config
    engine = TorchEngine(model, max_len=len(ids), prefill_chunk=len(ids))  # one pass, so each place is met once
    if split:
        engine.prefill(0, ids[:split])
    layers: list[Any] = list(model.model.layers)
    handles = [layers[0].register_forward_pre_hook(lambda _, args: keep(embedding_name(config), args[0]))]
    for layer, block in enumerate(layers):
        handles += _hook(block, layer, keep)
    handles.append(model.model.norm.register_forward_hook(lambda _, args, out: keep(FINAL_NORM, out)))
    try:
        kept["logits"] = engine.prefill(0, ids[split:])
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _hook(block: Block, layer: int, keep: Any) -> list[Any]:
    if block.config.parallel_block:
        return [block.register_forward_hook(lambda _, args, out: keep(residual_name(layer, "block"), out[0]))]
    mixed = block.post_attention_layernorm
    return [
        mixed.register_forward_pre_hook(lambda _, args: keep(residual_name(layer, "attention"), args[0])),
        block.register_forward_hook(lambda _, args, out: keep(residual_name(layer, "ffn"), out[0])),
    ]


def _run_onnx(
    folder: Path, config: ModelConfig, names: Sequence[str], ids: Sequence[int], split: int
) -> dict[str, np.ndarray]:
    """The same from the graph in `folder`, with its inner tensors made outputs."""
    pieces = [ids[:split], ids[split:]] if split else [ids]
    found = list(Rerun(onnx.load(graph_file(folder)), config, inner=names).run(pieces))[-1]
    return {**found, "logits": found["logits"][0]}
