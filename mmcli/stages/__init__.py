"""The built-in stages: their names and options. Their work is in the module of the same name (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from mmcli.config import option
from mmcli.data.config import DataConfig
from mmcli.model.config import ModelConfig
from mmcli.stage import Stage
from mmcli.train.config import OptimConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Next-token prediction on plain text."""

    model: ModelConfig = option(ModelConfig, "the model")
    data: DataConfig = option(DataConfig, "the text")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")


PRETRAIN = Stage(
    name="pretrain",
    summary="Train a model from zero on plain text.",
    config=PretrainConfig,
    run="mmcli.stages.pretrain:run",
    example="mmcli pretrain --preset small --data books/ --budget 20m",
)
