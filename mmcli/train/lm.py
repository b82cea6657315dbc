"""Cross-entropy of the next token, with the balance loss of a mixture of experts: the loss of pretraining and SFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmcli.data.pack.batches import NO_LABEL, Batch
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.device import move
from mmcli.model.logps import token_logps
from mmcli.stage import LossOutput, Metric, Term

NEARLY_ALL = 0.9  # share of labels from which picking them is not worth it


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch of packed rows, on the host until it is moved."""

    ids_BT: Tensor
    labels_BT: Tensor
    ctx: AttnContext
    counts: Mapping[str, float]
    tokens: int
    labelled_N: Tensor | None = None  # places of the labels in the flattened batch; None: nearly all have one

    @classmethod
    def from_batch(cls, batch: Batch, config: ModelConfig, *, pin: bool = False, branches_BT: Any = None) -> TokenBatch:
        """A batch of rows as host tensors, with what each term of its loss is averaged over.

        Args:
            branches_BT: where texts share their beginning, see `AttnContext.from_batch`.
            pin: put them into page-locked memory, from which copies to a CUDA device do not wait.
        """
        ctx = AttnContext.from_batch(batch.positions_BT, batch.segments_BT, branches_BT=branches_BT)
        counts: dict[str, float] = {"loss": float(batch.targets)}
        if config.use_moe:
            counts["balance"] = float(ctx.rows) if config.seq_aux else 1.0
        labelled_N = None
        if batch.targets < NEARLY_ALL * batch.labels_BT.size:
            labelled_N = torch.from_numpy((batch.labels_BT.ravel() != NO_LABEL).nonzero()[0])
        ids_BT, labels_BT = torch.from_numpy(batch.ids_BT), torch.from_numpy(batch.labels_BT)
        made = cls(ids_BT, labels_BT, ctx, counts, batch.tokens, labelled_N)
        return made._map(Tensor.pin_memory, AttnContext.pin_memory) if pin else made

    def to(self, device: torch.device) -> TokenBatch:
        """The same micro-batch on `device`."""
        return self._map(lambda tensor: move(tensor, device), lambda ctx: ctx.to(device))

    def _map(self, move: Callable[[Tensor], Tensor], move_ctx: Callable[[AttnContext], AttnContext]) -> TokenBatch:
        return replace(
            self,
            ids_BT=move(self.ids_BT),
            labels_BT=move(self.labels_BT),
            ctx=move_ctx(self.ctx),
            labelled_N=None if self.labelled_N is None else move(self.labelled_N),
        )


def language_model_metrics(config: ModelConfig) -> tuple[Metric, ...]:
    """The values of `language_model_loss` that are shown."""
    routers = (
        Metric("expert_load", ".0%", "experts", group="experts"),
        Metric("expert_entropy", ".2f", "H", group="experts"),
        Metric("expert_dropped", ".2g", "drop", group="experts"),
    )
    return (Metric("loss"), *(routers if config.use_moe else ()))


def language_model_loss(model: Any, batch: TokenBatch, config: ModelConfig) -> LossOutput:
    """Mean negative log-likelihood over the labelled tokens, plus alpha times the balance loss of the experts.

    Where many tokens have no label (prompts, padding), the logits of those that have one are computed alone.

    Args:
        model: the Transformer, or its compiled form.
    """
    hidden, stats = model(batch.ids_BT, batch.ctx)
    labels = batch.labels_BT
    if batch.labelled_N is not None:
        hidden, labels = hidden.flatten(0, 1)[batch.labelled_N], labels.flatten()[batch.labelled_N]
    logps = token_logps(hidden, model.head_weight, labels, bias=model.head_bias)
    terms = {"loss": Term(-logps.sum(), batch.counts["loss"])}
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
