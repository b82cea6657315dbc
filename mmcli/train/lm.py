"""Cross-entropy of the next token, with the balance loss of a mixture of experts: the loss of pretraining and SFT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcli.data.pack.batches import Batch
from mmcli.model.attention import AttnContext
from mmcli.model.logps import token_logps
from mmcli.stage import LossOutput, Term

if TYPE_CHECKING:
    from mmcli.model.config import ModelConfig


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch of packed rows on the device."""

    ids_BT: Tensor
    labels_BT: Tensor
    ctx: AttnContext
    counts: Mapping[str, float]
    tokens: int

    @classmethod
    def from_batch(cls, batch: Batch, config: ModelConfig, device: torch.device) -> TokenBatch:
        """A batch of rows as tensors, with what each term of its loss is averaged over."""
        ctx = AttnContext.from_batch(batch.positions_BT, batch.segments_BT, device)
        counts: dict[str, float] = {"loss": float(batch.targets)}
        if config.use_moe:
            counts["balance"] = float(ctx.rows) if config.seq_aux else 1.0
        ids, labels = (torch.from_numpy(array).to(device) for array in (batch.ids_BT, batch.labels_BT))
        return cls(ids, labels, ctx, counts, batch.tokens)


def language_model_loss(model: Any, batch: TokenBatch, config: ModelConfig) -> LossOutput:
    """Mean negative log-likelihood over the labelled tokens, plus alpha times the balance loss of the experts.

    Args:
        model: the Transformer, or its compiled form.
    """
    hidden_BTD, stats = model(batch.ids_BT, batch.ctx)
    logps_BT = token_logps(hidden_BTD, model.head_weight, batch.labels_BT, bias=model.head_bias)
    terms = {"loss": Term(-logps_BT.sum(), batch.counts["loss"])}
    metrics: dict[str, Term] = {}
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], config.aux_loss_alpha)
        share_LE = stats.load_LE / stats.load_LE.sum(dim=1, keepdim=True).clamp(min=1)
        entropy = -(share_LE * share_LE.clamp(min=1e-9).log()).sum(dim=1).mean() / math.log(share_LE.shape[1])
        metrics["expert_load"] = Term(share_LE.mean(dim=0) * batch.tokens, batch.tokens)
        metrics["expert_entropy"] = Term(entropy * batch.tokens, batch.tokens)  # 1: perfectly even
        chosen = batch.tokens * config.num_experts_per_tok * stats.load_LE.shape[0]
        metrics["expert_dropped"] = Term((chosen - stats.load_LE.sum()) * (batch.tokens / chosen), batch.tokens)
    return LossOutput(terms, metrics)
