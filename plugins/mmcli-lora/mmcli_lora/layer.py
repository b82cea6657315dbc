"""One linear layer with a low-rank addition.

Shapes: I features in, O features out, R rank.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcli_lora import LoraConfig

A, B = "lora_A", "lora_B"


class LoraLinear(nn.Linear):
    """W x + bias + scale * B A x. `weight` and `bias` keep their names and tensors, and no longer train."""

    def __init__(self, base: nn.Linear, config: LoraConfig, name: str, seed: int) -> None:
        """
        Args:
            base: the layer whose weight and bias are used; it is left as it is, but frozen.
            name: of the layer in the model; with `seed` it decides A, so that the order of layers does not matter.
        """
        nn.Module.__init__(self)  # not Linear's, which would make a weight of its own
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        self.scale, self.dropout = config.scale, config.dropout
        self.enabled, self.training = True, base.training
        a_RI = torch.from_numpy(_normal((config.rank, base.in_features), f"{seed}:{name}.{A}"))
        a_RI /= base.in_features**0.5  # A x is as large as x, whatever I is
        self.lora_A = nn.Parameter(a_RI.to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if not self.enabled:
            return y
        down = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return y + F.linear(down, self.lora_B) * self.scale

    @torch.no_grad()
    def merged_OI(self) -> Tensor:
        """W + scale * B A, summed in fp64."""
        delta_OI = self.lora_B.double() @ self.lora_A.double() * self.scale
        return (self.weight.double() + delta_OI).to(self.weight.dtype)


def _normal(shape: tuple[int, ...], key: str) -> np.ndarray:
    """Standard normal numbers, fp32, that depend on `key` alone."""
    digest = hashlib.sha256(key.encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return random.standard_normal(shape, dtype=np.float32)
