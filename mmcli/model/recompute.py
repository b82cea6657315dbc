"""Activations that are computed again in the backward pass rather than kept (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_whole_layers = False  # the layer that runs is computed again as a whole, whose own hooks others would replace


def as_a_whole(layer: Callable[..., Any], *given: Any) -> Any:
    """What `layer` gives, with nothing inside `recomputed` on its own: the function to checkpoint."""
    global _whole_layers
    before, _whole_layers = _whole_layers, True
    try:
        return layer(*given)
    finally:
        _whole_layers = before


def recomputed(
    value: Tensor, compute: Callable[[], Tensor], *, weight: Tensor
) -> contextlib.AbstractContextManager[object]:
    """Where `weight` is frozen, let nothing inside keep `value` for the backward pass, which computes it again.

    Beside frozen weights it is adapters that want it, and with these memory is what counts. Weights that train have
    their gradients and moments, beside which it is little, and keeping it is quicker.

    Args:
        value: computed outside, used inside.
        compute: the same from tensors that the graph keeps anyway.
    """
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()  # the compiler decides itself what it keeps
    if weight.requires_grad or not torch.is_grad_enabled() or _whole_layers:
        return contextlib.nullcontext()
    place, size = value.untyped_storage().data_ptr(), value.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        same = saved.untyped_storage().data_ptr() == place and saved.numel() == size and saved.is_contiguous()
        return saved.shape if same else saved

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return compute().view(kept)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
