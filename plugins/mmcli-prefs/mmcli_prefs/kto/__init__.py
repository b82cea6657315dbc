"""Kahneman-Tversky optimization of replies that are each said to be good or bad: `mmcli kto`. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcli.api import ConfigError, DataConfig, OptimConfig, Stage, TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class KtoConfig:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = option(0.1, "KL penalty strength: how far from the reference a reply may be moved")
    desirable_weight: float = option(1.0, "weight of the good replies")
    undesirable_weight: float = option(1.0, "weight of the bad replies")
    reference: str | None = option(None, "reference model, run or folder; default: the model of --from")
    data: DataConfig = option(DataConfig, "the replies with their labels")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ConfigError("beta", f"beta = {self.beta} is not positive", "give a number such as 0.1")
        for name in ("desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                what = f"{name} = {getattr(self, name)} is negative, or no number"
                raise ConfigError(name, what, "give 0 or more, such as 1")
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ConfigError("desirable_weight", "both weights are 0: nothing is learned", "give one above 0")


KTO = Stage(
    name="kto",
    summary="Train on single replies that are each labelled good or bad.",
    config=KtoConfig,
    run="mmcli_prefs.kto.training:run",
    defaults={"train.start_from": "latest:sft", "optim.lr": 5e-6, "optim.weight_decay": 0.0},
    example="mmcli kto --data labelled.jsonl",
)
