"""Configuration of the optimizer and of the training loop. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mmcli.config import ConfigError, option
from mmcli.errors import did_you_mean

LOGGER_NAMES = ("tensorboard", "wandb", "trackio", "swanlab")  # see mmcli.train.loggers

POSITIVE = ("steps", "batch_size", "micro_batch", "checkpoint_every", "eval_every", "sample_every")
WSD_DECAY = 0.4  # of the steps; 0.4 to 0.5 was best for small models in a fixed time


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter, 2019), or Muon (Jordan et al., 2024) for the hidden matrices and AdamW for the
    rest, and the schedule of the learning rate."""

    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "optimizer; muon: Muon for hidden matrices, AdamW for the rest", flag="--optimizer"
    )
    lr: float = option(5e-4, "peak learning rate", flag="--lr")
    min_lr_ratio: float = option(0.1, "final learning rate as a fraction of the peak")
    warmup_ratio: float = option(0.02, "fraction of the steps with linear warmup")
    schedule: Literal["cosine", "linear", "wsd"] = option(
        "cosine", "learning rate schedule; wsd: warmup, stable, linear decay at the end", flag="--schedule"
    )
    decay_ratio: float | None = option(
        None, "fraction of the steps, the last ones, over which the rate decays; default: all, for wsd 0.4"
    )
    weight_decay: float = option(0.1, "decoupled weight decay of matrices (not of norms and biases)")
    embedding_lr_factor: float = option(1.0, "learning rate of embeddings (tied head included), as a multiple of lr")
    head_lr_factor: float = option(1.0, "learning rate of an untied output head, as a multiple of lr")
    vector_lr_factor: float = option(1.0, "learning rate of norms and biases, as a multiple of lr")
    momentum: float = option(0.95, "Muon momentum (Nesterov)")
    beta1: float = option(0.9, "AdamW beta1, decay of the first moment")
    beta2: float = option(0.95, "AdamW beta2, decay of the second moment")
    eps: float = option(1e-8, "AdamW epsilon")
    clip: float = option(1.0, "gradient clipping, maximum norm; 0: off")

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError("lr", f"optim.lr = {self.lr} is negative", "give a rate such as 5e-4")
        for name in ("min_lr_ratio", "warmup_ratio", "momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(name, f"optim.{name} = {value} is not in 0 to 1", "give a fraction such as 0.1")
            if value == 1.0 and name in ("momentum", "beta1", "beta2"):
                what = f"optim.{name} = {value} is 1: a moment that never changes"
                raise ConfigError(name, what, "give a decay below 1, such as 0.9")
        if self.decay_ratio is not None and not 0.0 < self.decay_ratio <= 1.0:
            what = f"optim.decay_ratio = {self.decay_ratio} is not in 0 to 1"
            raise ConfigError("decay_ratio", what, "give a fraction such as 0.4")
        for name in ("embedding_lr_factor", "head_lr_factor", "vector_lr_factor", "weight_decay", "eps", "clip"):
            value = getattr(self, name)
            if value < 0.0:
                raise ConfigError(name, f"optim.{name} = {value} is negative", "give 0 or more")

    @property
    def decay_share(self) -> float:
        """`decay_ratio`, or what it is by default."""
        return self.decay_ratio if self.decay_ratio is not None else WSD_DECAY if self.schedule == "wsd" else 1.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Initial model, duration, batch size, device, and evaluation and checkpoint intervals."""

    start_from: str | None = option(None, "model to start from: run, 7/best, folder or latest:STAGE", flag="--from")
    adapter: str | None = option(None, "train an adapter such as lora; default: all weights", flag="--adapter")
    adapter_set: tuple[str, ...] = option((), "adapter setting, such as rank=16; repeatable", flag="--adapter-set")
    steps: int | None = option(None, "optimizer steps; default: from --epochs", flag="--steps")
    epochs: float | None = option(None, "passes over the data; default: 1, or what --budget allows", flag="--epochs")
    budget: str | None = option(
        None, "time to train, such as 20m or 1h30m; --steps or --epochs can end it sooner", flag="--budget"
    )
    batch_size: int = option(32, "sequences per optimizer step (dpo: pairs)", flag="--batch-size")
    micro_batch: int | None = option(
        None, "sequences per forward pass; default: chosen for the device", flag="--micro-batch"
    )
    seed: int = option(0, "random seed of weights, data order and dropout", flag="--seed")
    device: str = option("auto", "device: auto, cpu, cuda, cuda:1 or mps", flag="--device")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "compute precision; auto: bf16 where it is measured to be quick", flag="--precision"
    )
    compile: Literal["auto", "on", "off"] = option("auto", "use torch.compile; auto: on long runs", flag="--compile")
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, a third slower"
    )
    shard: bool = option(False, "split weights, gradients and moments between the processes (FSDP)", flag="--shard")
    checkpoint_every: int | None = option(None, "checkpoint interval in steps; default: within 2 minutes, then every 5")
    keep_checkpoints: int = option(2, "number of latest checkpoints to keep")
    keep_best: bool = option(True, "keep the model with the lowest held-out loss in best/, where a later one is worse")
    eval_every: int | None = option(None, "evaluation interval in steps; default: ten per run")
    sample_every: int | None = option(None, "interval of sample texts in steps; default: four per run")
    log: str | None = option(
        None, "also log to tensorboard, wandb, trackio or swanlab (several: with commas)", flag="--log"
    )

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"train.{name} = {value} is below 1", "give 1 or more")
        if self.adapter_set and self.adapter is None:
            what = f"train.adapter_set = {self.adapter_set[0]} without an adapter"
            raise ConfigError("adapter_set", what, "add --adapter lora")
        if self.keep_checkpoints < 1:
            what = f"train.keep_checkpoints = {self.keep_checkpoints} is below 1"
            raise ConfigError("keep_checkpoints", what, "give 1 or more; resuming needs one")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError("epochs", f"train.epochs = {self.epochs} is not positive", "give a number such as 1")
        if self.budget is not None:
            parse_duration(self.budget)
        for name in self.loggers:
            if name not in LOGGER_NAMES:
                what = f'train.log = "{self.log}": there is no "{name}"'
                raise ConfigError("log", what, did_you_mean(name, list(LOGGER_NAMES)))

    @property
    def loggers(self) -> tuple[str, ...]:
        """The names in `log`."""
        return tuple(dict.fromkeys(name.strip() for name in (self.log or "").split(",") if name.strip()))

    @property
    def passes(self) -> float:
        """`epochs`, or what they are by default where there is no budget."""
        return 1.0 if self.epochs is None else self.epochs

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else parse_duration(self.budget)


def parse_duration(text: str, name: str = "train.budget") -> float:
    """Seconds of a duration such as `90s`, `20m`, `1h30m` or `2d`, which `name` has.

    Raises:
        ConfigError: the text is not a duration, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ConfigError("budget", f'{name} = "{text}" is not a time', "write it like 90s, 20m or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ConfigError("budget", f'{name} = "{text}" is zero', "give at least 1s")
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
