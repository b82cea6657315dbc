"""Direct preference optimization: the better of two replies made likelier, held to a frozen reference."""

from __future__ import annotations

from typing import Any

from mmcli.data.sources.sources import open_data
from mmcli.stage import LossOutput, Metric, StageContext
from mmcli.stages import DpoConfig
from mmcli.stages.pairs import fill_reference, open_pairs, pair_task
from mmcli.stages.start import prepare_start
from mmcli.train.loop import train
from mmcli.train.preference import PREFERENCE_METRICS, PairBatch, preference_loss

HELD_OUT_METRICS = (Metric("val_dpo_loss", label="val"), Metric("val_accuracy", label="val acc"))


def run(config: DpoConfig, context: StageContext) -> dict[str, Any]:
    """Train on preference pairs; the totals of the run."""
    data = open_data("preference", config.data)  # refuse what is not there before anything is made
    start = prepare_start(None, data, config.train, context)
    pairs = open_pairs(data, config.train, start, context, term="dpo_loss")
    fill_reference(pairs, config.reference, config.train, start, context)

    def loss(model: Any, batch: PairBatch) -> LossOutput:
        return preference_loss(
            model, batch, start.model.config, beta=config.beta, label_smoothing=config.label_smoothing
        )

    metrics = (*PREFERENCE_METRICS, *HELD_OUT_METRICS)
    task = pair_task(pairs, loss, start, context, metrics=metrics)
    return train(task, config.optim, config.train, context)
