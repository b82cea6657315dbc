"""A reward model: `mmcli reward` trains it, `--reward model=MODEL` scores replies with it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcli.api import ConfigError, DataConfig, OptimConfig, Reward, Stage, TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """A model that gives the chosen reply of a pair the higher score (Bradley and Terry 1952)."""

    center: float = option(0.0, "weight of (chosen + rejected)^2, which keeps scores around 0, such as 0.01")
    data: DataConfig = option(DataConfig, "the preference pairs")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        if not 0 <= self.center < math.inf:
            raise ConfigError("center", f"center = {self.center} is negative, or no number", "give 0, or 0.01")


REWARD = Stage(
    name="reward",
    summary="Train a model that scores replies, on preference pairs.",
    config=RewardConfig,
    run="mmcli_prefs.reward.training:run",
    defaults={"train.start_from": "latest:sft", "optim.lr": 5e-5, "optim.weight_decay": 0.0},
    example="mmcli reward --data preferences.jsonl",
)
MODEL = Reward(
    name="model",
    summary="The score of a reward model: model=latest:reward.",
    function="mmcli_prefs.reward.scoring:open_reward",
    of_model=True,
)
