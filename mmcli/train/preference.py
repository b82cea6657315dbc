"""Losses of preference pairs: that of direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), and
what all of them return.

Shapes: P pairs of a micro-batch, 2P sequences (chosen, rejected, chosen, ...) of T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.data.pack.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.device import move
from mmcli.model.logps import token_logps
from mmcli.model.moe import RouterStats
from mmcli.stage import LossOutput, Metric, Term
from mmcli.train.lm import TokenBatch

PREFERENCE_METRICS = (Metric("dpo_loss", label="loss"), Metric("margin"), Metric("accuracy", label="acc"))


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of pairs: row 2i holds the chosen sequence of pair i, row 2i + 1 the rejected one."""

    rows: TokenBatch
    reference_P2: Tensor  # log-probabilities of chosen and rejected under the reference
    counts: Mapping[str, float]
    term: str  # the term of the loss that is averaged over pairs

    @classmethod
    def from_batch(
        cls, batch: Batch, reference_P2: np.ndarray, config: ModelConfig, term: str = "dpo_loss", *, pin: bool = False
    ) -> PairBatch:
        """Rows of pairs as host tensors, with what each term of the loss is averaged over: `term` over pairs.

        `pin` as in `TokenBatch`.
        """
        rows, reference = TokenBatch.from_batch(batch, config, pin=pin), torch.from_numpy(reference_P2)
        counts = {term: float(batch.rows // 2)}
        if "balance" in rows.counts:
            counts["balance"] = rows.counts["balance"]
        return cls(rows, reference.pin_memory() if pin else reference, counts, term)

    @property
    def tokens(self) -> int:
        """Tokens in it, padding not counted."""
        return self.rows.tokens

    def to(self, device: torch.device) -> PairBatch:
        """The same micro-batch on `device`."""
        return replace(
            self,
            rows=self.rows.to(device),
            reference_P2=move(self.reference_P2, device),
        )


def sequence_logps(model: Any, batch: PairBatch) -> tuple[Tensor, Any]:
    """([P, 2] log-probability of each reply, summed over its trained tokens; router statistics)."""
    rows = batch.rows
    hidden_BTD, stats = model(rows.ids_BT, rows.ctx)
    logps_BT = token_logps(hidden_BTD, model.head_weight, rows.labels_BT, bias=model.head_bias)
    return logps_BT.sum(dim=1).view(-1, 2), stats


def dpo_losses(logps_P2: Tensor, reference_P2: Tensor, beta: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(loss_P, margin_P): the sigmoid loss (equation 7), smoothed as in cDPO (Mitchell 2023).

    The margin is beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)).
    """
    ratios_P2 = logps_P2 - reference_P2
    margin_P = beta * (ratios_P2[:, 0] - ratios_P2[:, 1])
    loss_P = -F.logsigmoid(margin_P) * (1.0 - label_smoothing) - F.logsigmoid(-margin_P) * label_smoothing
    return loss_P, margin_P


def preference_loss(
    model: Any, batch: PairBatch, config: ModelConfig, *, beta: float, label_smoothing: float
) -> LossOutput:
    """Mean DPO loss over the pairs, plus alpha times the balance loss of the experts.

    Args:
        model: the Transformer, or its compiled form.
    """
    logps_P2, stats = sequence_logps(model, batch)
    loss_P, margin_P = dpo_losses(logps_P2, batch.reference_P2, beta, label_smoothing)
    return pair_output(loss_P, margin_P, logps_P2, batch, stats, config)


def pair_output(
    loss_P: Tensor,
    margin_P: Tensor,
    values_P2: Tensor,
    batch: PairBatch,
    stats: RouterStats | None,
    config: ModelConfig,
    *,
    values: str = "logp",
) -> LossOutput:
    """The sums of a loss of pairs, with margin and accuracy; plus alpha times the balance loss of the experts.

    Args:
        margin_P: above 0 where the chosen reply is preferred.
        values_P2: what is logged of the chosen and the rejected reply, as `chosen_` and `rejected_` with the name
            `values`.
        stats: of the forward pass; None for a dense model.
    """
    pairs = batch.counts[batch.term]
    terms = {batch.term: Term(loss_P.sum(), pairs)}
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], config.aux_loss_alpha)
    metrics = {
        "margin": Term(margin_P.sum(), pairs),
        "accuracy": Term((margin_P > 0).float().sum(), pairs),
        f"chosen_{values}": Term(values_P2[:, 0].sum(), pairs),
        f"rejected_{values}": Term(values_P2[:, 1].sum(), pairs),
    }
    return LossOutput(terms, metrics)
