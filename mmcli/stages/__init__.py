"""The built-in stages: names, options, defaults. Their work is in the modules of the same name (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcli.config import ConfigError, option
from mmcli.data.config import DataConfig
from mmcli.model.config import ModelConfig
from mmcli.stage import Stage
from mmcli.train.config import OptimConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Next-token prediction on plain text, or on a mixture of text and conversations."""

    mask_prompts: bool = option(True, "in conversations, no loss on what the assistant does not write")
    init: Literal["auto", "bigram", "random"] = option(
        "auto", "weights of a new model: fitted to the bigrams of the data, or random; auto: what pays", flag="--init"
    )
    model: ModelConfig = option(ModelConfig, "the model")
    data: DataConfig = option(DataConfig, "the training text, or text and conversations")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")


PRETRAIN = Stage(
    name="pretrain",
    summary="Train a model from scratch on plain text.",
    config=PretrainConfig,
    run="mmcli.stages.pretrain:run",
    example="mmcli pretrain --preset small --data books/ --budget 20m",
)


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning on conversations."""

    train_on: Literal["all", "last"] = option("all", "assistant turns with a loss: all, or only the last")
    train_reasoning: bool = option(True, "train on the assistant's reasoning too; false: only on what follows it")
    data: DataConfig = option(DataConfig, "the conversations, or conversations and text")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")


SFT = Stage(
    name="sft",
    summary="Fine-tune a model on conversations, so that it answers.",
    config=SftConfig,
    run="mmcli.stages.sft:run",
    defaults={"train.start_from": "latest:pretrain", "optim.lr": 1e-4},
    example="mmcli sft --data conversations.jsonl --epochs 2",
)


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    beta: float = option(0.1, "KL penalty strength")
    label_smoothing: float = option(0.0, "assumed share of pairs with swapped labels, below 0.5")
    reference: str | None = option(None, "reference model, run or folder; default: the model of --from")
    data: DataConfig = option(DataConfig, "the preference pairs")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError("beta", f"beta = {self.beta} is not positive", "give a number such as 0.1")
        if not 0.0 <= self.label_smoothing < 0.5:
            what = f"label_smoothing = {self.label_smoothing} is not in 0 to 0.5"
            raise ConfigError("label_smoothing", what, "give a share such as 0.1")


DPO = Stage(
    name="dpo",
    summary="Train a model to prefer the better of two answers.",
    config=DpoConfig,
    run="mmcli.stages.dpo:run",
    defaults={"train.start_from": "latest:sft", "optim.lr": 5e-6, "optim.weight_decay": 0.0},
    example="mmcli dpo --data preferences.jsonl --beta 0.1",
)
