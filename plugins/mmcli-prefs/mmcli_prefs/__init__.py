"""Preference training beside DPO: `mmcli prefs --loss NAME`. Its work is in `training` (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mmcli.api import ConfigError, DataConfig, OptimConfig, Stage, TrainConfig, option

BETA = {"ipo": 0.1, "orpo": 0.1, "simpo": 2.0, "cpo": 0.1}
NLL = {"ipo": 0.0, "orpo": 1.0, "simpo": 0.0, "cpo": 1.0}
GAMMA = 1.0


@dataclass(frozen=True, kw_only=True)
class PrefsConfig:
    """A loss of preference pairs and its weights."""

    loss: Literal["ipo", "orpo", "simpo", "cpo"] = option("simpo", "loss of a pair")
    beta: float | None = option(None, "strength of the preference; default: 0.1, simpo 2")
    nll: float | None = option(None, "weight of plain fine-tuning on the chosen reply; default: 0, orpo and cpo 1")
    gamma: float | None = option(None, "simpo: margin to reach; default: 1")
    reference: str | None = option(None, "ipo: reference model, run or folder; default: the model of --from")
    data: DataConfig = option(DataConfig, "the preference pairs")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        for name, only in (("gamma", "simpo"), ("reference", "ipo")):
            if getattr(self, name) is not None and self.loss != only:
                what = f"--{name} is for --loss {only}, and the loss is {self.loss}"
                raise ConfigError(name, what, "leave it out")
        if not 0 < self.strength < math.inf:
            raise ConfigError("beta", f"beta = {self.beta} is not positive", "give a number such as 0.1")
        for name, value in (("nll", self.nll_weight), ("gamma", self.target)):
            if not 0 <= value < math.inf:
                raise ConfigError(name, f"{name} = {value} is negative, or no number", "give 0 or more, such as 1")

    @property
    def strength(self) -> float:
        """`beta`, or what it is by default."""
        return BETA[self.loss] if self.beta is None else self.beta

    @property
    def nll_weight(self) -> float:
        """`nll`, or what it is by default."""
        return NLL[self.loss] if self.nll is None else self.nll

    @property
    def target(self) -> float:
        """`gamma`, or what it is by default."""
        return GAMMA if self.gamma is None else self.gamma


PREFS = Stage(
    name="prefs",
    summary="Train on preference pairs by IPO, ORPO, SimPO or CPO.",
    config=PrefsConfig,
    run="mmcli_prefs.training:run",
    defaults={"train.start_from": "latest:sft", "optim.lr": 5e-6, "optim.weight_decay": 0.0},
    example="mmcli prefs --loss simpo --data preferences.jsonl",
)
