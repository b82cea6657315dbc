"""The work of `mmcli reward`: pairs, a model with a score in place of its head, and the loss.

Shapes: P pairs; [P, 2] holds the chosen reply and the rejected one.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmcli.api import (
    LossOutput,
    ModelConfig,
    PairBatch,
    PairData,
    Pairs,
    RewardModel,
    StageContext,
    Start,
    last_scores,
    new_score,
    open_pairs,
    pair_output,
    pair_task,
    save_reward_model,
    train,
)
from mmcli_prefs.begin import PAIR_METRICS, begin
from mmcli_prefs.reward import RewardConfig
from mmcli_prefs.reward.rows import WholePairs, last_places


def run(config: RewardConfig, context: StageContext) -> dict[str, Any]:
    """Train on preference pairs; the totals of the run.

    Raises:
        UserError: the data or the model cannot be used.
    """
    data, start = begin(config.data, config.train, context)
    found = open_pairs(data, config.train, start, context, whole=True)
    held_out = None if found.held_out is None else _whole(found.held_out)
    pairs = PairData(_whole(found.training), held_out, found.steps)
    model = RewardModel(start.model, new_score(start.model, config.train.seed))

    def loss(model: Any, batch: PairBatch) -> LossOutput:
        return reward_loss(model, batch, start.model.config, config)

    task = pair_task(pairs, loss, start, context, metrics=PAIR_METRICS)
    task = replace(task, model=model, save_model=lambda folder: save(folder, model, start))
    return train(task, config.optim, config.train, context)


def _whole(pairs: Pairs) -> WholePairs:
    return WholePairs(**{field.name: getattr(pairs, field.name) for field in fields(pairs)})


def save(folder: Path, model: RewardModel, start: Start) -> None:
    """Fill `folder` with the reward model, merged with its adapter where there is one."""
    base = start.model
    if start.adapter is not None:
        base = start.adapter.merge(base)
    save_reward_model(folder, base, model.score.weight, start.tokenizer)


def pair_losses(scores_P2: Tensor, center: float) -> tuple[Tensor, Tensor]:
    """(loss_P, margin_P): the negative log-likelihood that the chosen reply wins (Bradley and Terry 1952; Ouyang et al.
    2022, equation 1), and `center` times the squared sum (Eisenstein et al. 2023, arXiv:2312.09244).
    """
    margin_P = scores_P2[:, 0] - scores_P2[:, 1]
    return -F.logsigmoid(margin_P) + center * scores_P2.sum(dim=1) ** 2, margin_P


def reward_loss(model: Any, batch: PairBatch, model_config: ModelConfig, config: RewardConfig) -> LossOutput:
    """The mean loss over the pairs, plus alpha times the balance loss of the experts."""
    hidden_BTD, stats = model(batch.rows.ids_BT, batch.rows.ctx)
    scores_P2 = last_scores(model, hidden_BTD, last_places(batch.rows.labels_BT)).view(-1, 2)
    loss_P, margin_P = pair_losses(scores_P2, config.center)
    return pair_output(loss_P, margin_P, scores_P2, batch, stats, model_config, values="score")
