"""The learning rate of each step."""

from __future__ import annotations

import math

from mmcli.train.config import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine decay to `min_lr_ratio` of the peak (Loshchilov and Hutter, 2017).

    Args:
        step: updates already done, from 0.
        steps: updates in all.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    lowest = config.lr * config.min_lr_ratio
    share = (step - warmup) / max(1, steps - warmup)
    return lowest + 0.5 * (config.lr - lowest) * (1.0 + math.cos(math.pi * min(1.0, share)))
