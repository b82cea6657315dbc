"""Group relative policy optimization: `mmcli grpo`. Its work is in `training` (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcli.api import ConfigError, DataConfig, OptimConfig, Stage, TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class GrpoData(DataConfig):
    """Conversations: the model answers the last question of each, and what the data answers is the right answer."""

    sources: tuple[str, ...] = option(
        ("demo:arithmetic",),
        "conversations that end in the right answer: files, folders, globs, hf:OWNER/NAME or demo:arithmetic",
        flag="--data",
    )


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300) and its variants."""

    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = option("dapo", "variant of the loss")
    reward: tuple[str, ...] = option(
        ("exact-answer",), "reward, or FILE.py:FUNCTION, with :WEIGHT or without; repeatable"
    )
    group_size: int = option(8, "replies to each prompt, compared with each other")
    updates: int = option(1, "optimizer steps on the same replies; with 1 nothing is clipped")
    clip_low: float | None = option(None, "lowest probability ratio is 1 - this; default: that of the variant")
    clip_high: float | None = option(None, "highest probability ratio is 1 + this; default: that of the variant")
    kl_coef: float = option(0.0, "weight of the KL divergence from the starting model")
    max_new_tokens: int = option(128, "tokens of a reply, all its turns together")
    temperature: float = option(1.0, "sampling temperature of the replies")
    tool: tuple[str, ...] | None = option(
        None, "FILE.py:FUNCTION that answers calls of the tool FUNCTION; built in: calculator"
    )
    tool_rounds: int = option(2, "times that a reply may call tools and go on; 0: never")
    slots: int = option(64, "replies written at a time")
    data: GrpoData = option(GrpoData, "the prompts with their answers")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        for name, least, such in (
            ("group_size", 2, 8),
            ("updates", 1, 2),
            ("max_new_tokens", 1, 128),
            ("tool_rounds", 0, 2),
            ("slots", 1, 64),
        ):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(name, f"{name} = {value} is below {least}", f"give {least} or more, such as {such}")
        if self.temperature <= 0:
            what = f"temperature = {self.temperature} is not positive: all replies of a group would be the same"
            raise ConfigError("temperature", what, "give a number such as 1")
        if self.kl_coef < 0:
            raise ConfigError("kl_coef", f"kl_coef = {self.kl_coef} is negative", "give 0, or a weight such as 0.01")
        if self.clip_low is not None and not 0 < self.clip_low <= 1:
            raise ConfigError("clip_low", f"clip_low = {self.clip_low} is not in 0 to 1", "give a number such as 0.2")
        if self.clip_low is not None and self.loss == "cispo":
            what = f"clip_low = {self.clip_low}: the loss cispo has no lower bound"
            raise ConfigError("clip_low", what, "leave it out, or give another --loss")
        if self.clip_high is not None and self.clip_high <= 0:
            raise ConfigError(
                "clip_high", f"clip_high = {self.clip_high} is not positive", "give a number such as 0.28"
            )
        if not self.reward:
            raise ConfigError("reward", "reward is empty", "name one, such as exact-answer")


GRPO = Stage(
    name="grpo",
    summary="Learn from rewards for what the model writes itself.",
    config=GrpoConfig,
    run="mmcli_grpo.training:run",
    defaults={
        "train.start_from": "latest:sft",
        "train.batch_size": 16,
        "train.compile": "off",  # every micro-batch has a shape of its own
        "optim.lr": 5e-5,
        "optim.weight_decay": 0.0,
        "data.seq_len": 512,
    },
    example="mmcli grpo --data demo:arithmetic --reward exact-answer --budget 10m",
)
