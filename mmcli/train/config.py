"""Configuration of the optimizer and the training loop. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mmcli.config import ConfigError, option


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter, 2019) with linear warm-up and cosine decay."""

    lr: float = option(5e-4, "peak learning rate", flag="--lr")
    min_lr_ratio: float = option(0.1, "last learning rate as a share of the peak")
    warmup_ratio: float = option(0.02, "share of the steps in which the rate rises")
    weight_decay: float = option(0.1, "decoupled decay of matrices (not of norms and biases)")
    beta1: float = option(0.9, "decay of the first moment")
    beta2: float = option(0.95, "decay of the second moment")
    eps: float = option(1e-8, "epsilon of AdamW")
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping")

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError("lr", f"optim.lr = {self.lr} is negative", "give a rate such as 5e-4")
        for name in ("min_lr_ratio", "warmup_ratio", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(name, f"optim.{name} = {value} is not in 0 to 1", "give a share such as 0.1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Duration, batch sizes, device, and the intervals of evaluation, samples and checkpoints."""

    start_from: str | None = option(None, "model to start from: run, folder or latest:STAGE", flag="--from")
    adapter: str | None = option(None, "train only an adapter, such as lora; none: all weights", flag="--adapter")
    adapter_set: tuple[str, ...] = option((), "a value of the adapter, such as rank=16", flag="--adapter-set")
    steps: int | None = option(None, "optimizer steps; none: by --epochs", flag="--steps")
    epochs: float = option(1.0, "passes over the data", flag="--epochs")
    budget: str | None = option(None, "time to train, such as 20m or 1h30m", flag="--budget")
    batch_size: int = option(32, "rows (pairs for dpo) in an optimizer step", flag="--batch-size")
    micro_batch: int | None = option(None, "rows at once; none: chosen for the device", flag="--micro-batch")
    seed: int = option(0, "seed of weights, order and dropout", flag="--seed")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", flag="--device")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "auto: bf16 where it is fast", flag="--precision")
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile; auto: where it pays", flag="--compile")
    activation_checkpointing: bool = option(False, "recompute layers in backward: less memory, a third slower")
    checkpoint_every: int | None = option(None, "steps between checkpoints; none: within 2 minutes, then every 5")
    keep_checkpoints: int = option(2, "newest checkpoints kept")
    eval_every: int | None = option(None, "steps between validations; none: ten in all")
    sample_every: int | None = option(None, "steps between sample texts; none: four in all")

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("micro_batch", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(name, f"train.{name} = {value} is below {least}", f"give {least} or more")
        if self.adapter_set and self.adapter is None:
            what = f"train.adapter_set = {self.adapter_set[0]} without an adapter"
            raise ConfigError("adapter_set", what, "name it: --adapter lora")
        if self.keep_checkpoints < 1:
            what = f"train.keep_checkpoints = {self.keep_checkpoints} is below 1"
            raise ConfigError("keep_checkpoints", what, "give 1 or more; resume needs one")
        if self.epochs <= 0:
            raise ConfigError("epochs", f"train.epochs = {self.epochs} is not positive", "give a number such as 1")
        if self.budget is not None:
            parse_duration(self.budget)

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else parse_duration(self.budget)


def parse_duration(text: str) -> float:
    """Seconds of a time such as `90s`, `20m`, `1h30m` or `2d`.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ConfigError("budget", f'train.budget = "{text}" is not a time', "write it like 90s, 20m or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ConfigError("budget", f'train.budget = "{text}" is no time at all', "give at least 1s")
    return float(total)


def duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them: 8s, 3m20s, 2h05m, 3d4h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
