"""A matrix with a low-rank addition: of one linear layer, or of every routed expert.

Shapes: I features in, O features out, R rank, E experts; N rows, sorted by expert. A is [R, I] or [E, R, I], B is
[O, R] or [E, O, R].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcli.api import Experts
from mmcli_lora import Recipe

A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"


@dataclass(frozen=True)
class Part:
    """The numbers of an addition: A, B and, with DoRA, the magnitude [O] or [E, O]."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None


class LowRank(nn.Module):
    """What is learned beside a frozen W: W' = W + scale * B A; with DoRA magnitude * W' / |W'|, row by row.

    |W'| is treated as a constant by the gradient (Liu et al. 2024, section 4.3). Dropout acts on what A is given.
    """

    start_A: Tensor | None
    start_B: Tensor | None
    start_magnitude: Tensor | None

    def __init__(self, weight: Tensor, recipe: Recipe, dropout: float, name: str, seed: int) -> None:
        """
        Args:
            weight: W, [O, I] or [E, O, I].
            name: of the layer in the model; with `seed` it decides A, so that the order of layers does not matter.
        """
        super().__init__()
        *experts, features_out, features_in = weight.shape
        self.scale, self.dropout, self.enabled = recipe.scale, dropout, True
        a_RI = torch.from_numpy(_normal((*experts, recipe.rank, features_in), f"{seed}:{name}.{A}"))
        a_RI /= features_in**0.5  # A x is as large as x, whatever I is
        self.lora_A = nn.Parameter(a_RI.to(weight))
        self.lora_B = nn.Parameter(weight.new_zeros(*experts, features_out, recipe.rank))
        length_O = self.length(weight, Part(self.lora_A, self.lora_B)) if recipe.use_dora else None
        # One vector, also of experts: vectors are not decayed.
        self.lora_magnitude_vector = None if length_O is None else nn.Parameter(length_O.flatten())
        for buffer in ("start_A", "start_B", "start_magnitude"):
            self.register_buffer(buffer, None, persistent=False)

    @torch.no_grad()
    def start_from(self, part: Part) -> None:
        """Take these numbers; `reference` is from now on what they compute."""
        self.lora_A.copy_(part.a)
        self.lora_B.copy_(part.b)
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()
        if self.lora_magnitude_vector is not None:
            assert part.magnitude is not None
            self.lora_magnitude_vector.copy_(part.magnitude.flatten())
            self.start_magnitude = self.lora_magnitude_vector.detach().clone()

    def part(self) -> Part:
        """What is learned, as it is now."""
        return self._part(self.lora_A, self.lora_B, self.lora_magnitude_vector)

    def active(self) -> Part | None:
        """What the forward pass adds: what is learned, or as a reference what it began with; None: nothing."""
        if self.enabled:
            return self.part()
        if self.start_A is None or self.start_B is None:
            return None
        return self._part(self.start_A, self.start_B, self.start_magnitude)

    def _part(self, a: Tensor, b: Tensor, magnitude: Tensor | None) -> Part:
        return Part(a, b, None if magnitude is None else magnitude.view(b.shape[:-1]))

    @torch.no_grad()
    def length(self, weight: Tensor, part: Part) -> Tensor:
        """|W + scale * B A| of each row: [O] or [E, O]."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.linalg.vector_norm(weight + self.scale * (part.b @ part.a), dim=-1)

    def factor(self, weight: Tensor, part: Part) -> Tensor:
        """The magnitude over the length: what each row of W' is multiplied by."""
        assert part.magnitude is not None
        return part.magnitude / self.length(weight, part)

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """W' as one matrix, or a stack of them, computed in fp64."""
        part = self.part()
        whole = _fp64(weight) + self.scale * (_fp64(part.b) @ _fp64(part.a))
        if part.magnitude is not None:
            whole *= (_fp64(part.magnitude) / torch.linalg.vector_norm(whole, dim=-1))[..., None]
        return whole.to(weight.dtype).to(weight.device)

    def dropped(self, x: Tensor) -> Tensor:
        """What A is given."""
        return F.dropout(x, self.dropout, self.training)


def _fp64(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # MPS has no fp64


class LoraLinear(LowRank):
    """A linear layer with an addition. `weight` and `bias` keep their names and tensors, and no longer train."""

    def __init__(self, base: nn.Linear, recipe: Recipe, dropout: float, name: str, seed: int) -> None:
        super().__init__(base.weight, recipe, dropout, name, seed)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        self.training = base.training

    def forward(self, x: Tensor) -> Tensor:
        part, x_NI = self.active(), x.flatten(0, -2)
        if part is None:
            y_NO = F.linear(x_NI, self.weight, self.bias)
        elif part.magnitude is None:
            y_NO = self._with_addition(F.linear(x_NI, self.weight, self.bias), x_NI, part)
        else:
            y_NO = self._with_addition(F.linear(x_NI, self.weight), x_NI, part)
            y_NO = (y_NO * self.factor(self.weight, part)).to(y_NO.dtype)
            y_NO = y_NO if self.bias is None else y_NO + self.bias.to(y_NO.dtype)
        return y_NO.unflatten(0, x.shape[:-1])

    def _with_addition(self, y_NO: Tensor, x_NI: Tensor, part: Part) -> Tensor:
        """y + scale * B A x, computed into y: what is as wide as y exists once, in the forward pass as well."""
        down_NR = F.linear(self.dropped(x_NI), part.a)
        return y_NO.addmm_(down_NR.to(y_NO.dtype), part.b.t().to(y_NO.dtype), alpha=self.scale)


class LoraExperts(Experts):
    """Routed experts with an addition to each expert's matrix in some of the projections."""

    def __init__(self, base: Experts) -> None:
        nn.Module.__init__(self)  # not that of Experts, which would make weights of its own
        self.config, self.training = base.config, base.training
        base.requires_grad_(False)
        for name, parameter in base.named_parameters():
            self.register_parameter(name, parameter)
        self.added = nn.ModuleDict()

    def project(self, name: str, x_NI: Tensor, counts_E: Tensor) -> Tensor:
        """The rows through the projection `name` of their experts, additions included."""
        y_NO = super().project(name, x_NI, counts_E)
        if name not in self.added:
            return y_NO
        layer = self.added[name]
        assert isinstance(layer, LowRank)
        part = layer.active()
        if part is None:
            return y_NO
        down_NR = self.grouped(layer.dropped(x_NI), part.a, counts_E)
        y_NO = y_NO + self.grouped(down_NR, part.b, counts_E) * layer.scale
        if part.magnitude is None:
            return y_NO
        numbers_E = torch.arange(counts_E.shape[0], device=counts_E.device)
        expert_N = numbers_E.repeat_interleave(counts_E, output_size=x_NI.shape[0])
        factor_EO = layer.factor(getattr(self, name), part)
        return (y_NO * F.embedding(expert_N, factor_EO)).to(y_NO.dtype)


def _normal(shape: tuple[int, ...], key: str) -> np.ndarray:
    """Standard normal numbers, fp32, that depend on `key` alone."""
    digest = hashlib.sha256(key.encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return random.standard_normal(shape, dtype=np.float32)
