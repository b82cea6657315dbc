"""The dense feed-forward network (FFN): gated (SwiGLU, Shazeer 2020, arXiv:2002.05202) or not.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcli.model.config import ModelConfig
from mmcli.model.recompute import recomputed


class Linear(nn.Linear):
    """`nn.Linear` without its own initialization, which takes time and advances the global RNG; see `init_weights`."""

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialized; `mmcli.model.init.init_weights` fills them."""


def activate(gate: Tensor | None, up: Tensor, kind: str) -> Tensor:
    """The FFN activation: silu(gate) * up for "swiglu"; gelu(up) for "gelu" (exact) and "gelu_tanh" (approximate)."""
    if kind == "swiglu":
        assert gate is not None
        if not torch.is_grad_enabled():
            return _swiglu(gate, up)
        product: Tensor = _SwiGLU.apply(gate, up)
        return product
    return F.gelu(up, approximate="tanh" if kind == "gelu_tanh" else "none")


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, which keeps these two alone: silu(gate) is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class FeedForward(nn.Module):
    """down(act(up(x))), or with a gate down(silu(gate(x)) * up(x)). Maps x_BTD to the same shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        if config.gated:
            self.gate_proj = Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.up_proj = Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.down_proj = Linear(config.ffn_dim, config.dim, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate = self.gate_proj(x_BTD) if self.kind == "swiglu" else None
        up = self.up_proj(x_BTD)
        product = activate(gate, up, self.kind)
        with recomputed(product, lambda: activate(gate, up, self.kind), weight=self.down_proj.weight):
            return self.down_proj(product)
