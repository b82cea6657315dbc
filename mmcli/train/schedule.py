"""The learning rate of each step, and where a step stands in a schedule whose length changes on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcli.train.config import OptimConfig


@dataclass(frozen=True)
class Horizon:
    """The number of steps of a training, which a budget fits anew on the way.

    Attributes:
        fits: (step, steps): from `step` on, the training has `steps` steps in all. The first is (0, steps), the others
            follow in the order of their steps.
    """

    fits: tuple[tuple[int, int], ...]

    @property
    def steps(self) -> int:
        """Of the training, as it was fitted last."""
        return self.fits[-1][1]

    @property
    def fitted_at(self) -> int:
        """The step of the last fit."""
        return self.fits[-1][0]

    def position(self, step: int) -> float:
        """Where `step` stands in the schedule, which is drawn over the steps of the first fit.

        Each fit stretches or squeezes what was left of it, so that the rate goes on from where it was.
        """
        first = self.fits[0][1]
        place, since, steps = 0.0, 0, first
        for start, fitted in self.fits[1:]:
            if step < start:
                break
            place += (first - place) * (start - since) / (steps - since)
            since, steps = start, fitted
        return place + (first - place) * (step - since) / (steps - since)


def learning_rate(step: float, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, the peak, then decay to `min_lr_ratio` of it over the last `decay_ratio` of the steps.

    The decay follows half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983) or a line. The warm-up, stable,
    decay schedule (Hu et al. 2024, arXiv:2404.06395) is a line over the end alone.

    Args:
        step: updates already done, from 0.
        steps: updates in all.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    start = max(float(warmup), steps - config.decay_share * steps)
    if step <= start:
        return config.lr
    lowest = config.lr * config.min_lr_ratio
    share = min(1.0, (step - start) / max(1.0, steps - start))
    left = 0.5 * (1.0 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1.0 - share
    return lowest + left * (config.lr - lowest)
