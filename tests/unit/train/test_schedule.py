from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.train.config import OptimConfig, TrainConfig, parse_duration
from mmcli.train.schedule import Horizon, learning_rate

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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "linear"}, {10: 1e-3, 55: 5.5e-4, 100: 1e-4}),
        ({"schedule": "linear", "decay_ratio": 0.5}, {10: 1e-3, 50: 1e-3, 75: 5.5e-4, 100: 1e-4}),
        ({"schedule": "cosine", "decay_ratio": 0.5}, {49: 1e-3, 75: 5.5e-4, 100: 1e-4}),
        ({"schedule": "wsd"}, {11: 1e-3, 60: 1e-3, 80: 5.5e-4, 100: 1e-4}),
        ({"schedule": "wsd", "decay_ratio": 0.2, "min_lr_ratio": 0.0}, {80: 1e-3, 90: 5e-4, 99: 5e-5, 100: 0.0}),
    ],
)
def test_each_schedule_has_its_rates(options: dict[str, Any], expected: dict[int, float]) -> None:
    config = OptimConfig(**{"lr": 1e-3, "min_lr_ratio": 0.1, "warmup_ratio": 0.1, **options})
    assert learning_rate(4, 100, config) == pytest.approx(5e-4)
    for step, rate in expected.items():
        assert learning_rate(step, 100, config) == pytest.approx(rate, abs=1e-12)


def test_a_fit_stretches_what_is_left_of_the_schedule() -> None:
    whole = Horizon(((0, 100),))
    assert [whole.position(step) for step in range(101)] == list(range(101)) and whole.steps == 100
    fitted = Horizon(((0, 100), (50, 75), (60, 100)))
    assert fitted.position(49) == 49 and fitted.position(50) == 50
    assert fitted.position(55) == 60 and fitted.position(60) == 70  # two of the 100 a step
    assert fitted.position(80) == 85 and fitted.position(100) == 100  # three of them in four steps
    assert fitted.steps == 100 and fitted.fitted_at == 60


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_a_decay_over_no_step_or_too_many_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="decay_ratio"):
        OptimConfig(decay_ratio=ratio)


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
