from __future__ import annotations

import itertools
import math

import pytest

from mmcli.errors import UserError
from mmcli.train.config import OptimConfig, TrainConfig, parse_duration
from mmcli.train.schedule import learning_rate

CONFIG = OptimConfig(lr=1e-3, min_lr_ratio=0.1, warmup_ratio=0.1)


def test_the_rate_rises_then_falls_to_its_share() -> None:
    rates = [learning_rate(step, 100, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(1e-3)
    assert all(a <= b for a, b in itertools.pairwise(rates[:10]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    half = 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi * 0.5))
    assert rates[55] == pytest.approx(half)
    assert learning_rate(100, 100, CONFIG) == pytest.approx(1e-4)


def test_one_step_has_a_rate() -> None:
    assert learning_rate(0, 1, CONFIG) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2d", 172800), ("1m5s", 65)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert TrainConfig(budget=text).budget_seconds == seconds


@pytest.mark.parametrize("text", ["", "20", "soon", "-5m", "0s", "1.5h", "5m 3x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        TrainConfig(budget=text)
