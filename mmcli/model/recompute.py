"""Activations that are computed again in the backward pass rather than kept (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor


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
    if weight.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return contextlib.nullcontext()  # the compiler decides itself what it keeps
    place = value.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.untyped_storage().data_ptr() == place else saved

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return compute().view(kept)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
