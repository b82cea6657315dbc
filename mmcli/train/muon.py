"""Muon for the hidden matrices, AdamW for the rest, in one optimizer.

Muon (Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): Nesterov momentum whose update is made
nearly orthogonal, so that every direction of a matrix learns at the same rate. The update is scaled to the root mean
square of AdamW's (Moonlight, Liu et al. 2025, arXiv:2502.16982, section 2.2): one learning rate serves both rules and
every shape.

Shapes: N matrices of one shape, O features out, I features in, S the smaller of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcli.train.shard import local, part, whole

Quintic = tuple[float, float, float]  # (a, b, c) of a*x + b*x^3 + c*x^5
QUINTIC: tuple[Quintic, ...] = ((3.4445, -4.7750, 2.0315),) * 5
RMS = 0.2  # root mean square of AdamW's update in practice (Moonlight)
EPS = 1e-7  # a gradient with a smaller norm than this stays small
BATCH_ELEMENTS = 1 << 22  # of matrices that step together: bounds the working memory; more are no faster on a CPU


class Muon(torch.optim.Optimizer):
    """Groups with `muon=True` take Muon's rule, the others fused AdamW's.

    Every parameter of a Muon group is a matrix [O, I] or a stack of them [E, O, I], each orthogonalized by itself.
    State of a parameter: `momentum_buffer`, or AdamW's `exp_avg`, `exp_avg_sq` and `step`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        coefficients: Sequence[Quintic] = QUINTIC,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`coefficients`: of each Newton-Schulz step; `dtype`: of its products."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "muon": False}
        super().__init__(groups, defaults)
        self.coefficients, self.dtype = tuple(coefficients), dtype
        rest = [group for group in self.param_groups if not group["muon"]]
        self._adamw = build_adamw(rest, lr=lr, betas=betas, eps=eps) if rest else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                for batch in _batches([parameter for parameter in group["params"] if parameter.grad is not None]):
                    self._step_matrices(batch, group)
        if self._adamw is not None:  # it works on the groups and the state of this optimizer, loaded ones too
            self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
            self._adamw.state = self.state
            self._adamw.step()
        return loss

    def _step_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices, or stacks of them, that have one shape [..., O, I].

        Where they are split between ranks, each rank has all of their update computed, and takes its part.
        """
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        rows, columns = matrices[0].shape[-2:]
        grads = [local(matrix.grad) for matrix in matrices if matrix.grad is not None]  # none is
        buffers = [local(self.state[matrix]["momentum_buffer"]) for matrix in matrices]
        torch._foreach_lerp_(buffers, grads, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
        wholes = [whole(each, matrix) for each, matrix in zip(ahead, matrices, strict=True)]
        stacks = [each.reshape(-1, rows, columns) for each in wholes]
        found_NOI = orthogonalize(torch.cat(stacks), self.coefficients, self.dtype)
        parts = found_NOI.split([len(stack) for stack in stacks])
        updates = [part(each.view(matrix.shape), matrix) for each, matrix in zip(parts, matrices, strict=True)]
        own = [local(matrix) for matrix in matrices]
        torch._foreach_mul_(own, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own, updates, alpha=-group["lr"] * RMS * max(rows, columns) ** 0.5)


def build_adamw(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW, fused where the device can."""
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def orthogonalize(
    x_NOI: Tensor, coefficients: Sequence[Quintic] = QUINTIC, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Each matrix with its singular values brought near 1, its singular vectors as they were (Newton-Schulz).

    With the default coefficients, singular values of at least 0.0015 of the Frobenius norm come to 0.68 to 1.21.
    Products with the smaller square [S, S] go to the smaller side. Where a matrix is long enough, all steps are taken
    in that square alone, which is the same polynomial for fewer products; in fp32 only, for it squares small values.
    """
    x_NOI = (x_NOI / torch.linalg.vector_norm(x_NOI, dim=(-2, -1), keepdim=True).clamp(min=EPS)).to(dtype)
    rows, columns = x_NOI.shape[-2:]
    tall = rows > columns
    gram_NSS = x_NOI.mT @ x_NOI if tall else x_NOI @ x_NOI.mT
    if dtype == torch.float32 and 2 * max(rows, columns) > 3 * min(rows, columns):
        factor_NSS = _in_the_square(gram_NSS, coefficients)
        return x_NOI @ factor_NSS if tall else factor_NSS @ x_NOI
    for step, (a, b, c) in enumerate(coefficients):
        if step:
            gram_NSS = x_NOI.mT @ x_NOI if tall else x_NOI @ x_NOI.mT
        factor_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        left, right = (x_NOI, factor_NSS) if tall else (factor_NSS, x_NOI)
        x_NOI = torch.baddbmm(x_NOI, left, right, beta=a)
    return x_NOI


def _in_the_square(gram_NSS: Tensor, coefficients: Sequence[Quintic]) -> Tensor:
    """The product of all steps' factors, by which the matrix itself is multiplied once."""
    factor_NSS = product_NSS = _factor(gram_NSS, coefficients[0])
    for quintic in coefficients[1:]:
        gram_NSS = factor_NSS @ gram_NSS @ factor_NSS  # all are polynomials of one matrix: they commute
        factor_NSS = _factor(gram_NSS, quintic)
        product_NSS = product_NSS @ factor_NSS
    return product_NSS


def _factor(gram_NSS: Tensor, quintic: Quintic) -> Tensor:
    """a + b G + c G^2: one step multiplies the matrix by it."""
    a, b, c = quintic
    factor_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
    factor_NSS.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor_NSS


def _batches(matrices: Sequence[Tensor]) -> list[list[Tensor]]:
    """Matrices of one shape and device together, `BATCH_ELEMENTS` at most unless one alone has more."""
    found: dict[tuple[torch.Size, torch.device], list[list[Tensor]]] = {}
    for matrix in matrices:
        batches = found.setdefault((matrix.shape[-2:], matrix.device), [[]])
        if batches[-1] and sum(each.numel() for each in batches[-1]) + matrix.numel() > BATCH_ELEMENTS:
            batches.append([])
        batches[-1].append(matrix)
    return [batch for batches in found.values() for batch in batches]
