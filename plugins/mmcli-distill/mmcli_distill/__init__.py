"""Distillation from a larger model: `mmcli distill`. Its work is in `training` (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmcli.api import ConfigError, DataConfig, ModelConfig, OptimConfig, Stage, TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from the distributions of a teacher (Hinton et al. 2015, arXiv:1503.02531), or from what it writes."""

    teacher: str = option("", "model to learn from: run, folder or latest:STAGE")
    on: Literal["text", "chat", "replies"] = option(
        "text", "what it learns from: texts, the replies in conversations, or replies that the teacher writes"
    )
    temperature: float = option(2.0, "softness of both distributions; above 1, unlikely tokens count more")
    mix: float = option(0.5, "share of the teacher in the loss, 0 to 1; the rest is the plain loss")
    top_k: int = option(0, "keep the teacher's K likeliest tokens on disk, so that it runs once; 0: it runs each step")
    max_new_tokens: int = option(256, "--on replies: longest reply in tokens; a longer one is left out")
    model: ModelConfig = option(ModelConfig, "the student")
    data: DataConfig = option(DataConfig, "the texts or conversations")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        if not self.teacher.strip():
            raise ConfigError("teacher", "mmcli distill needs a teacher", "name it: --teacher latest:pretrain")
        if not 0 < self.temperature < math.inf:
            what = f"temperature = {self.temperature} is not positive"
            raise ConfigError("temperature", what, "give a number such as 2")
        if not 0 <= self.mix <= 1:
            raise ConfigError("mix", f"mix = {self.mix} is not in 0 to 1", "give a share such as 0.5")
        if self.top_k < 0:
            raise ConfigError("top_k", f"top_k = {self.top_k} is below 0", "give a number such as 32, or 0")
        if self.max_new_tokens < 1:
            what = f"max_new_tokens = {self.max_new_tokens} leaves nothing to write"
            raise ConfigError("max_new_tokens", what, "give a number such as 256")

    @property
    def reads_distributions(self) -> bool:
        """The teacher's distributions are part of the loss, or of what is shown; else its replies are all."""
        return self.on != "replies" or self.mix > 0


DISTILL = Stage(
    name="distill",
    summary="Train a model on the distributions of a larger one, or on its replies.",
    config=DistillConfig,
    run="mmcli_distill.training:run",
    example="mmcli distill --teacher latest:pretrain --preset tiny --data books/",
)
