"""The dense FFN: gated (SwiGLU, Shazeer 2020, arXiv:2002.05202) or not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmcli.model.config import ModelConfig


class Linear(nn.Linear):
    """A linear map that `init_weights` fills: torch's own filling would cost time and move a global random state."""

    def reset_parameters(self) -> None:
        """Nothing: see `mmcli.model.init`."""


def activate(gate: Tensor | None, up: Tensor, kind: str) -> Tensor:
    """silu(gate) * up for "swiglu"; gelu of `up`, exact or by tanh, for "gelu" and "gelu_tanh"."""
    if kind == "swiglu":
        assert gate is not None
        return F.silu(gate) * up
    return F.gelu(up, approximate="tanh" if kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """down(act(up x)), or down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        if config.gated:
            self.gate_proj = Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.up_proj = Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.down_proj = Linear(config.ffn_dim, config.dim, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate = self.gate_proj(x_BTD) if self.kind == "swiglu" else None
        return self.down_proj(activate(gate, self.up_proj(x_BTD), self.kind))
