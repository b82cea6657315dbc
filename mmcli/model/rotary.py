"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), rotate-half form, and RoPE scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmcli.model.config import ModelConfig

YARN_BETA_FAST, YARN_BETA_SLOW = 32, 1  # turns within the trained context: keep above, interpolate below
LLAMA3_HIGH, LLAMA3_LOW = 4.0, 1.0  # the same of Llama 3.1


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """(angle per position of each rotated pair [rotary_dim / 2] in fp32, factor on the tables).

    "linear" divides every angle by `rope_factor`; "yarn" (Peng et al. 2023, arXiv:2309.00071, sections 3.2 to 3.4)
    keeps fast pairs, divides slow ones, ramps between over the pairs, and scales the tables by 0.1 ln(factor) + 1;
    "llama3" (Llama 3.1, arXiv:2407.21783, section 3.4.2) ramps over the turns and scales nothing.
    """
    n_features = config.rotary_dim
    exponent = torch.arange(0, n_features, 2, dtype=torch.float32, device="cpu") / n_features
    pair_period = config.rope_theta**exponent
    frequencies = 1.0 / pair_period
    if config.rope_scaling == "none":
        return frequencies, 1.0
    if config.rope_scaling == "linear":
        return frequencies / config.rope_factor, 1.0
    interpolated = 1.0 / (config.rope_factor * pair_period)
    if config.rope_scaling == "llama3":
        turns = config.original_seq_len * frequencies / (2 * math.pi)
        keep = ((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0.0, 1.0)
        return interpolated * (1.0 - keep) + frequencies * keep, 1.0
    keep = 1.0 - _yarn_ramp(config)
    factor = 0.1 * math.log(config.rope_factor) + 1.0 if config.rope_factor > 1.0 else 1.0
    return interpolated * (1.0 - keep) + frequencies * keep, factor


def _yarn_ramp(config: ModelConfig) -> Tensor:
    """0 for pairs that keep their angle, 1 for those that are interpolated, linear between (YaRN, equation 18)."""
    n_features = config.rotary_dim

    def pair_of(turns: int) -> float:
        """The pair that turns `turns` times within the trained context."""
        length = config.original_seq_len
        return n_features * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = float(max(math.floor(pair_of(YARN_BETA_FAST)), 0))
    high = float(min(math.ceil(pair_of(YARN_BETA_SLOW)), n_features - 1))
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = (torch.arange(n_features // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    return ramp.clamp(0.0, 1.0)


class Rotary(nn.Module):
    """The cos and sin tables of a batch, made in fp32 from its positions."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        frequencies, self.factor = rotary_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        # A change of device is followed, one of type is not: bf16 angles are wrong after a few hundred tokens.
        super()._apply(fn, recurse)
        self.frequencies = rotary_frequencies(self.config)[0].to(self.frequencies.device)
        return self

    def forward(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [B, T, 1, rotary_dim], fp32; the first half of sin is negative."""
        angles = positions_BT[:, :, None, None].float() * self.frequencies
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary_dim features of each head, feature i with i + rotary_dim/2; the rest passes."""
    if not torch.is_grad_enabled():
        return _turn(x_BTHd, cos, sin)
    turned: Tensor = _Rotate.apply(x_BTHd, cos, sin)
    return turned


class _Rotate(torch.autograd.Function):
    """A rotation, whose gradient is the opposite rotation: only the tables are kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHd, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad_BTHd: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad_BTHd, cos, -sin), None, None


def _turn(x_BTHd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n_features = cos.shape[-1]
    before = x_BTHd[..., :n_features].float()
    first, second = before.chunk(2, dim=-1)
    turned = (before * cos).addcmul_(torch.cat((second, first), dim=-1), sin).to(x_BTHd.dtype)
    return turned if n_features == x_BTHd.shape[-1] else torch.cat((turned, x_BTHd[..., n_features:]), dim=-1)
