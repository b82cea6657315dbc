"""The work of `mmcli kto`: replies, a reference, the KL divergence of each step, and the loss.

Shapes: B replies of a micro-batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcli.api import (
    DataConfig,
    Engine,
    LossOutput,
    Metric,
    ModelConfig,
    OpenedData,
    Rollouts,
    StageContext,
    StepBatch,
    Term,
    TokenBatch,
    UserError,
    fill_reference,
    open_data,
    pair_task,
    token_logps,
    train,
)
from mmcli_prefs.begin import ACCURACY, HELD_OUT_METRICS, begin, open_preferences
from mmcli_prefs.kto import KtoConfig
from mmcli_prefs.kto.replies import MISMATCHED, Replies, ReplyBatch, open_replies

METRICS = (Metric("loss"), Metric("kl", ".2f", "KL"), ACCURACY, *HELD_OUT_METRICS)
SHARED = ("loss", "kl", "accuracy")  # measured on held-out replies too


def run(config: KtoConfig, context: StageContext) -> dict[str, Any]:
    """Train on labelled replies; the totals of the run.

    Raises:
        UserError: the data or a model cannot be used.
    """
    data, start = begin(config.data, config.train, context, open_labelled)
    replies = open_replies(data, config.train, start, context)
    fill_reference(replies.pairs, config.reference, config.train, start, context)
    live, device = start.model, start.accelerator.device

    def loss(model: Any, batch: ReplyBatch) -> LossOutput:
        return kto_loss(model, batch, live.config, config)

    def batches(engine: Engine, step: int) -> Sequence[StepBatch]:
        """The micro-batches of a step, each with the KL divergence of the whole step under the weights before it."""
        which = replies.pairs.steps.row_numbers(step)
        kl = estimate_kl(live, replies.training, which, device)
        return [replies.training.batch(part, kl) for part in replies.training.pairs.parts(which)]

    def evaluate(model: Any) -> dict[str, float]:
        held_out = replies.held_out
        assert held_out is not None
        every = np.arange(len(held_out.pairs))
        kl = estimate_kl(model, held_out, every, device)
        outs = [loss(model, held_out.batch(part, kl).to(device)) for part in held_out.pairs.parts(every)]
        sums = {name: sum(float({**out.terms, **out.metrics}[name].sum) for out in outs) for name in SHARED}
        return {f"val_{name}": total / len(every) for name, total in sums.items()}

    task = replace(
        pair_task(replies.pairs, loss, start, context, metrics=METRICS),  # type: ignore[arg-type]
        batches=None,
        rollouts=Rollouts(batches, max_len=1),  # nothing is written: the model only reads, so no cache is needed
        evaluate=evaluate if replies.held_out is not None else None,
    )
    return train(task, config.optim, config.train, context)


def open_labelled(data: DataConfig) -> OpenedData:
    """Preference pairs, each as a good and a bad reply, or labelled replies.

    Raises:
        UserError: the data is neither.
    """
    try:
        return open_preferences(data)
    except UserError:
        return open_data("unpaired", data)


@torch.no_grad()
def estimate_kl(model: Any, replies: Replies, which: np.ndarray, device: torch.device) -> float:
    """The KL divergence from the reference that the replies `which` are held against, 0 or more.

    The mean of log p - log p_ref over their prompts with the replies of other records (Ethayarajh et al. 2024, section
    4.1). It is the same however the replies are cut into micro-batches.
    """
    total = 0.0
    for part in replies.pairs.parts(which):
        logps_B = reply_logps(model, replies.rows(part, MISMATCHED).to(device))[0]
        total += float((logps_B.cpu().double() - torch.from_numpy(replies.pairs.reference_N2[part, MISMATCHED])).sum())
    return max(0.0, total / len(which))


def reply_logps(model: Any, rows: TokenBatch) -> tuple[Tensor, Any]:
    """([B] log-probability of each reply, summed over its trained tokens; router statistics)."""
    hidden_BTD, stats = model(rows.ids_BT, rows.ctx)
    logps_BT = token_logps(hidden_BTD, model.head_weight, rows.labels_BT, bias=model.head_bias)
    return logps_BT.sum(dim=1), stats


def kto_losses(ratio_B: Tensor, good_B: Tensor, kl: Tensor, config: KtoConfig) -> tuple[Tensor, Tensor]:
    """(loss_B, margin_B) by equation 8 of KTO. The margin is above 0 where a good reply is likelier than under the
    reference by more than the KL divergence, or a bad one by less.

    Args:
        ratio_B: log p - log p_ref of the replies.
    """
    margin_B = torch.where(good_B, 1.0, -1.0) * config.beta * (ratio_B - kl)
    weight_B = torch.where(good_B, config.desirable_weight, config.undesirable_weight)
    return weight_B * (1.0 - torch.sigmoid(margin_B)), margin_B


def kto_loss(model: Any, batch: ReplyBatch, model_config: ModelConfig, config: KtoConfig) -> LossOutput:
    """The mean loss over the replies, plus alpha times the balance loss of the experts."""
    logps_B, stats = reply_logps(model, batch.rows)
    ratio_B = logps_B - batch.reference_B
    loss_B, margin_B = kto_losses(ratio_B, batch.good_B, batch.kl, config)
    count, good = batch.counts["loss"], float(batch.good_B.sum())
    terms = {"loss": Term(loss_B.sum(), count)}
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], model_config.aux_loss_alpha)
    reward_B = config.beta * ratio_B.detach()
    metrics = {
        "kl": Term(batch.kl * count, count),
        "accuracy": Term((margin_B > 0).float().sum(), count),
        "good_reward": Term((reward_B * batch.good_B).sum(), good),
        "bad_reward": Term((reward_B * ~batch.good_B).sum(), count - good),
    }
    return LossOutput(terms, metrics)
