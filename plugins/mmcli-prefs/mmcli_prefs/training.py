"""The work of `mmcli prefs`: pairs, a reference where the loss needs one, and the loss."""

from __future__ import annotations

from typing import Any

from mmcli.api import (
    LossOutput,
    Metric,
    ModelConfig,
    PairBatch,
    StageContext,
    choose_accelerator,
    fill_reference,
    make_deterministic,
    open_data,
    open_pairs,
    pair_output,
    pair_task,
    prepare_start,
    sequence_logps,
    train,
)
from mmcli_prefs import PrefsConfig
from mmcli_prefs.losses import pair_losses

METRICS = (
    *(Metric("loss"), Metric("margin"), Metric("accuracy", label="acc")),
    *(Metric("val_loss", label="val"), Metric("val_accuracy", label="val acc")),
)


def run(config: PrefsConfig, context: StageContext) -> dict[str, Any]:
    """Train on preference pairs; the totals of the run.

    Raises:
        UserError: the data or a model cannot be used.
    """
    make_deterministic()
    accelerator = choose_accelerator(config.train.device, config.train.precision, context)
    data = open_data("preference", config.data)  # refuse what is not there before anything is made
    start = prepare_start(None, data, config.train, context, accelerator.device)
    pairs = open_pairs(data, config.train, start, accelerator, context)
    if config.loss == "ipo":
        fill_reference(pairs, config.reference, config.train, start, accelerator, context)

    def loss(model: Any, batch: PairBatch) -> LossOutput:
        return prefs_loss(model, batch, start.model.config, config)

    task = pair_task(pairs, loss, start, accelerator, context, metrics=METRICS)
    return train(task, config.optim, config.train, context)


def prefs_loss(model: Any, batch: PairBatch, model_config: ModelConfig, config: PrefsConfig) -> LossOutput:
    """The mean loss over the pairs, plus alpha times the balance loss of the experts."""
    logps_P2, stats = sequence_logps(model, batch)
    lengths_P2 = (batch.rows.labels_BT >= 0).sum(dim=1).view(-1, 2)
    loss_P, margin_P = pair_losses(config, logps_P2, lengths_P2, batch.reference_P2)
    return pair_output(loss_P, margin_P, logps_P2, batch, stats, model_config)
