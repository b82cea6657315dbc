"""The work of `mmcli prefs`: pairs, a reference where the loss needs one, and the loss."""

from __future__ import annotations

from typing import Any

from mmcli.api import (
    LossOutput,
    ModelConfig,
    PairBatch,
    StageContext,
    fill_reference,
    open_pairs,
    pair_output,
    pair_task,
    sequence_logps,
    train,
)
from mmcli_prefs import PrefsConfig
from mmcli_prefs.begin import PAIR_METRICS, begin
from mmcli_prefs.losses import pair_losses


def run(config: PrefsConfig, context: StageContext) -> dict[str, Any]:
    """Train on preference pairs; the totals of the run.

    Raises:
        UserError: the data or a model cannot be used.
    """
    data, start = begin(config.data, config.train, context)
    pairs = open_pairs(data, config.train, start, context)
    if config.loss == "ipo":
        fill_reference(pairs, config.reference, config.train, start, context)

    def loss(model: Any, batch: PairBatch) -> LossOutput:
        return prefs_loss(model, batch, start.model.config, config)

    task = pair_task(pairs, loss, start, context, metrics=PAIR_METRICS)
    return train(task, config.optim, config.train, context)


def prefs_loss(model: Any, batch: PairBatch, model_config: ModelConfig, config: PrefsConfig) -> LossOutput:
    """The mean loss over the pairs, plus alpha times the balance loss of the experts."""
    logps_P2, stats = sequence_logps(model, batch)
    lengths_P2 = (batch.rows.labels_BT >= 0).sum(dim=1).view(-1, 2)
    loss_P, margin_P = pair_losses(config, logps_P2, lengths_P2, batch.reference_P2)
    return pair_output(loss_P, margin_P, logps_P2, batch, stats, model_config)
