"""The loss of distillation: the teacher's distributions beside the labels.

Shapes: B rows, T tokens in a row, N labelled tokens, D width, V vocabulary, K likeliest tokens of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmcli.api import LossOutput, ModelConfig, Term, TokenBatch, move
from mmcli_distill import DistillConfig

CHUNK_TOKENS = 2048  # whose logits, of both models, are in memory together
Sums = Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(part of the labelled tokens, logits_NV of the student, labels_N) -> (cross-entropy, KL), summed over that part."""


@dataclass(frozen=True)
class TaughtBatch:
    """A micro-batch with what the teacher expects at its labels, on the host until it is moved.

    Attributes:
        top_NK: int64, the teacher's K likeliest tokens.
        logps_NK1: their log-probabilities at the temperature; the last column is that of all other tokens together.
    """

    batch: TokenBatch
    top_NK: Tensor
    logps_NK1: Tensor

    @property
    def counts(self) -> Mapping[str, float]:
        return self.batch.counts

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    def to(self, device: torch.device) -> TaughtBatch:
        """The same micro-batch on `device`."""
        return TaughtBatch(
            self.batch.to(device),
            move(self.top_NK, device),
            move(self.logps_NK1, device),
        )


def distill_loss(
    model: Any, teacher: Any, batch: TokenBatch, model_config: ModelConfig, config: DistillConfig
) -> LossOutput:
    """Mean loss of the labelled tokens, with the whole distribution of a teacher that reads the batch too."""
    with torch.no_grad():
        seen_BTD, _ = teacher(batch.ids_BT, batch.ctx)
    seen_ND = seen_BTD.flatten(0, 1)[_labelled(batch)]

    def sums(part: slice, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            expected_NV = F.linear(seen_ND[part], teacher.head_weight, teacher.head_bias).float()
        return token_sums(logits_NV, expected_NV, labels_N, config.temperature)

    return _loss(model, batch, sums, model_config, config)


def table_loss(model: Any, taught: TaughtBatch, model_config: ModelConfig, config: DistillConfig) -> LossOutput:
    """The same with the K likeliest tokens of a teacher that ran before."""

    def sums(part: slice, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        return top_sums(logits_NV, taught.top_NK[part], taught.logps_NK1[part], labels_N, config.temperature)

    return _loss(model, taught.batch, sums, model_config, config)


def _labelled(batch: TokenBatch) -> Tensor:
    """Places of the labels in the flattened batch, [N]."""
    return (batch.labels_BT >= 0).flatten().nonzero().squeeze(1)


def _loss(model: Any, batch: TokenBatch, sums: Sums, model_config: ModelConfig, config: DistillConfig) -> LossOutput:
    """Mean loss of the labelled tokens, plus alpha times the balance loss of the experts."""
    hidden_BTD, stats = model(batch.ids_BT, batch.ctx)
    at_N = _labelled(batch)
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1)[at_N], batch.labels_BT.flatten()[at_N]

    def sums_of(part: slice) -> tuple[Tensor, Tensor]:
        logits_NV = F.linear(hidden_ND[part], model.head_weight, model.head_bias).float()
        return sums(part, logits_NV, labels_N[part])

    zero = hidden_BTD.sum() * 0.0  # a micro-batch may have no label
    cross_entropy, kl = zero, zero
    for first in range(0, len(at_N), CHUNK_TOKENS):
        of_part = checkpoint(sums_of, slice(first, first + CHUNK_TOKENS), use_reentrant=False)
        cross_entropy, kl = cross_entropy + of_part[0], kl + of_part[1]
    count = batch.counts["loss"]
    terms = {"loss": Term((1 - config.mix) * cross_entropy + config.mix * config.temperature**2 * kl, count)}
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], model_config.aux_loss_alpha)
    return LossOutput(terms, {"kl": Term(kl, count), "cross_entropy": Term(cross_entropy, count)})


def token_sums(logits_NV: Tensor, expected_NV: Tensor, labels_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(cross-entropy, KL(teacher || student) at the temperature), each summed over the tokens.

    Args:
        logits_NV: of the student.
        expected_NV: of the teacher.
    """
    cross_entropy = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    student_NV = F.log_softmax(logits_NV / temperature, dim=-1)
    teacher_NV = F.log_softmax(expected_NV / temperature, dim=-1)
    return cross_entropy, F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)


def likeliest(expected_NV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(top_NK, logps_NK1) of a teacher's logits: see `TaughtBatch`. k is below V."""
    top_NK = expected_NV.topk(k, dim=-1).indices
    return top_NK, lumped(expected_NV, top_NK, temperature)


def lumped(logits_NV: Tensor, top_NK: Tensor, temperature: float) -> Tensor:
    """logps_NK1: log-probabilities at the temperature of K tokens, and of all others together as one."""
    scaled_NV = logits_NV / temperature
    others_NV = scaled_NV.scatter(1, top_NK, -torch.inf)
    logits_NK1 = torch.cat([scaled_NV.gather(1, top_NK), others_NV.logsumexp(dim=-1, keepdim=True)], dim=1)
    return logits_NK1 - scaled_NV.logsumexp(dim=-1, keepdim=True)


def top_sums(
    logits_NV: Tensor, top_NK: Tensor, logps_NK1: Tensor, labels_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`token_sums`, where the teacher's other tokens are one outcome, and so are the student's.

    That KL is at most the one over the whole vocabulary, and becomes it as K grows: what the student has outside of the
    K tokens is drawn to the mass that the teacher has there, not to any token of it.
    """
    cross_entropy = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    student_NK1 = lumped(logits_NV, top_NK, temperature)
    return cross_entropy, F.kl_div(student_NK1, logps_NK1, reduction="sum", log_target=True)
