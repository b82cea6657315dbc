"""The loss of GRPO and its variants, as the papers have it.

| variant | ratio of | averaged over | advantage | clipped |
|---|---|---|---|---|
| grpo (Shao et al. 2024, arXiv:2402.03300) | token | tokens of a reply, replies | scaled | -0.2 +0.2 |
| dapo (Yu et al. 2025, arXiv:2503.14476) | token | all tokens | scaled | -0.2 +0.28 |
| dr_grpo (Liu et al. 2025, arXiv:2503.20783) | token | replies x max_new_tokens | not scaled | -0.2 +0.2 |
| gspo (Zheng et al. 2025, arXiv:2507.18071) | reply | replies | scaled | -3e-4 +4e-4 |
| cispo (MiniMax 2025, arXiv:2506.13585) | token | all tokens | scaled | +4, a weight |

Shapes: B replies of a micro-batch, T tokens, G replies to one prompt, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmcli.api import LossOutput, ModelConfig, Term, TokenBatch, move, token_logps

NO_LABEL = -100
EPSILON = 1e-4  # added to the deviation of a group's rewards, as in trl


@dataclass(frozen=True)
class Objective:
    """A variant of the loss with its numbers.

    Attributes:
        ratio: what a probability ratio is of: each token, or a whole reply (the geometric mean of its tokens).
        average: what the loss is averaged over: "reply" (each over its own tokens), "token" (all of the step), or
            "length" (each over the same number of tokens, `max_new_tokens`).
        scaled: advantages are divided by the standard deviation of their group.
        weighted: the ratio is a weight of the log-probability, without a gradient of its own (CISPO).
    """

    clip_low: float
    clip_high: float
    ratio: Literal["token", "reply"] = "token"
    average: Literal["reply", "token", "length"] = "token"
    scaled: bool = True
    weighted: bool = False
    kl_coef: float = 0.0
    max_new_tokens: int = 1


VARIANTS: Mapping[str, Objective] = {
    "grpo": Objective(0.2, 0.2, average="reply"),
    "dapo": Objective(0.2, 0.28),
    "dr_grpo": Objective(0.2, 0.2, average="length", scaled=False),
    "gspo": Objective(3e-4, 4e-4, ratio="reply", average="reply"),
    "cispo": Objective(1.0, 4.0, weighted=True),
}


def advantages(rewards_PG: Tensor, *, scaled: bool) -> Tensor:
    """[P, G] how much better each reply is than the mean of its group; `scaled` by the group's deviation."""
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    return centred_PG / (rewards_PG.std(dim=1, keepdim=True) + EPSILON) if scaled else centred_PG


def policy_losses(
    logps_BT: Tensor, old_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """(loss of each token, whether its ratio was clipped), both [B, T] and to be masked.

    Args:
        logps_BT: log-probabilities of the tokens.
        old_BT: the same under the weights that wrote them, without gradient.
        mask_BT: 1.0 for tokens that the model wrote, else 0.0.
    """
    advantages_B1 = advantages_B[:, None]
    log_ratio_BT = logps_BT - old_BT
    if objective.ratio == "reply":
        lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
        log_ratio_BT = (log_ratio_BT * mask_BT).sum(dim=1, keepdim=True) / lengths_B1
    ratio_BT = log_ratio_BT.exp()
    low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    if objective.weighted:
        losses_BT = -ratio_BT.clamp(max=high).detach() * advantages_B1 * logps_BT
        return losses_BT, (ratio_BT > high).expand_as(logps_BT)
    plain_BT, bounded_BT = ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1
    return -torch.min(plain_BT, bounded_BT).expand_as(logps_BT), (bounded_BT < plain_BT).expand_as(logps_BT)


def kl_losses(logps_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """[B, T] an estimate of KL(model || reference) that is never negative (k3 of Schulman 2020)."""
    difference_BT = reference_BT - logps_BT
    return difference_BT.exp() - difference_BT - 1.0


def reply_weights(mask_BT: Tensor, objective: Objective) -> Tensor:
    """[B, 1] by which the tokens of a reply are weighted before they are added up."""
    if objective.average == "reply":
        return 1.0 / mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
    weight = 1.0 / objective.max_new_tokens if objective.average == "length" else 1.0
    return torch.full_like(mask_BT[:, :1], weight)


@dataclass(frozen=True)
class ReplyRows:
    """Replies as a model reads them, those to one prompt in one row behind it.

    Attributes:
        rows: ids, labels and the context of attention.
        label_N: where the tokens that the model wrote are labels in `rows`, flattened.
        places_N: where each of these lies in [B, T], a reply to a row, flattened.
        shape: B replies, T tokens of the longest with its prompt, less the first.
    """

    rows: TokenBatch
    label_N: Tensor
    places_N: Tensor
    shape: tuple[int, int]

    def to(self, device: torch.device) -> ReplyRows:
        """The same on `device`."""
        label_N, places_N = (move(each, device) for each in (self.label_N, self.places_N))
        return replace(self, rows=self.rows.to(device), label_N=label_N, places_N=places_N)


@dataclass(frozen=True)
class ReplyBatch:
    """A micro-batch of replies on the host, until it is moved.

    Attributes:
        rows: the tokens.
        old_BT: log-probabilities under the weights that wrote them; None: these are the weights.
        reference_BT: log-probabilities under the reference; None: there is none.
        counts: what each term of the loss is averaged over.
        told: sums and counts of what is told of all replies of the step; with one of its micro-batches.
    """

    rows: ReplyRows
    advantages_B: Tensor
    old_BT: Tensor | None
    reference_BT: Tensor | None
    counts: Mapping[str, float]
    told: Mapping[str, tuple[float, float]]

    @property
    def tokens(self) -> int:
        """Tokens in it, padding not counted."""
        return self.rows.rows.tokens

    def to(self, device: torch.device) -> ReplyBatch:
        """The same micro-batch on `device`."""
        old, reference = (None if each is None else move(each, device) for each in (self.old_BT, self.reference_BT))
        moved = move(self.advantages_B, device)
        return replace(self, rows=self.rows.to(device), advantages_B=moved, old_BT=old, reference_BT=reference)


def reply_logps(model: Any, replies: ReplyRows, temperature: float) -> tuple[Tensor, Tensor, Any]:
    """([B, T] log-probability of each token that the model wrote at this temperature, else 0; 1.0 for those tokens,
    else 0.0; router statistics).

    Args:
        model: the Transformer, or its compiled form.
    """
    rows = replies.rows
    hidden_BTD, stats = model(rows.ids_BT, rows.ctx)
    hidden_ND, labels_N = (each[replies.label_N] for each in (hidden_BTD.flatten(0, 1), rows.labels_BT.flatten()))
    bias = model.head_bias
    if temperature != 1.0:
        hidden_ND, bias = hidden_ND / temperature, None if bias is None else bias / temperature
    logps_N = token_logps(hidden_ND, model.head_weight, labels_N, bias=bias)

    def spread(values_N: Tensor) -> Tensor:
        flat = values_N.new_zeros(replies.shape[0] * replies.shape[1])
        return flat.index_put((replies.places_N,), values_N).view(replies.shape)

    return spread(logps_N), spread(torch.ones_like(logps_N)), stats


def grpo_loss(
    model: Any, batch: ReplyBatch, config: ModelConfig, objective: Objective, temperature: float = 1.0
) -> LossOutput:
    """The loss of the written tokens, plus the KL divergence, plus alpha times the balance loss of the experts."""
    logps_BT, mask_BT, stats = reply_logps(model, batch.rows, temperature)
    old_BT = logps_BT.detach() if batch.old_BT is None else batch.old_BT
    losses_BT, clipped_BT = policy_losses(logps_BT, old_BT, batch.advantages_B, mask_BT, objective)
    weights_BT = mask_BT * reply_weights(mask_BT, objective)
    terms = {"policy_loss": Term((losses_BT * weights_BT).sum(), batch.counts["policy_loss"])}
    if batch.reference_BT is not None:
        kl_BT = kl_losses(logps_BT, batch.reference_BT)
        terms["kl"] = Term((kl_BT * weights_BT).sum(), batch.counts["kl"], objective.kl_coef)
    if stats is not None:
        terms["balance"] = Term(stats.balance, batch.counts["balance"], config.aux_loss_alpha)
    written = float(len(batch.rows.places_N))
    metrics = {name: Term(logps_BT.new_tensor(total), count) for name, (total, count) in batch.told.items()}
    metrics["entropy"] = Term(-logps_BT.detach().sum(), written)
    if batch.old_BT is not None:
        metrics["clip_share"] = Term((clipped_BT * mask_BT).sum(), written)
    return LossOutput(terms, metrics)
