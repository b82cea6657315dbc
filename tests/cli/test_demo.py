"""How long `mmcli demo` trains: what fits into the time that it has, by the speed of this machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmcli.cli import demo
from mmcli.errors import UserError
from mmcli.train.config import parse_duration

FREE = {"pretrain": None, "sft": None}
TOKENS = demo.ROWS * demo.SEQ_LEN


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the measurement finds: tokens per second of forward and backward passes."""
    found = SimpleNamespace(tokens_per_second=1.0)
    monkeypatch.setattr("mmcli.train.bench.bench_train", lambda *_, **__: found)
    return found


def steps_a_second(speed: SimpleNamespace, steps: float) -> None:
    speed.tokens_per_second = steps * TOKENS / demo.PASSES


def test_it_takes_ten_minutes_where_the_steps_of_a_good_model_fit_into_them(speed: SimpleNamespace) -> None:
    steps_a_second(speed, 7)
    length = demo._length(None, FREE)
    assert 540 <= length.seconds <= 600
    times = [parse_duration(each["train.budget"]) for each in length.stages.values()]
    assert sum(times) == pytest.approx(length.seconds - demo.OTHER_SECONDS, abs=2)
    assert 7 * sum(times) >= demo.FEWEST


def test_a_slow_machine_takes_longer_and_a_quick_one_ends_sooner(speed: SimpleNamespace) -> None:
    steps_a_second(speed, 1)
    slow = demo._length(None, FREE)
    assert slow.seconds == pytest.approx(demo.OTHER_SECONDS + demo.FEWEST, abs=1)
    steps_a_second(speed, 100)
    quick = demo._length(None, FREE)
    assert quick.seconds == pytest.approx(demo.OTHER_SECONDS + demo.MOST / 100, abs=1)
    assert sum(each["train.steps"] for each in quick.stages.values()) == demo.MOST


def test_a_budget_and_steps_are_kept_to(speed: SimpleNamespace) -> None:
    steps_a_second(speed, 1)
    assert demo._length("4m", FREE).seconds == pytest.approx(240 * (1 - demo.RESERVE), abs=1)
    steps_a_second(speed, 1000)
    long = demo._length("1h", FREE)
    assert long.seconds > 3000 and all(each["train.steps"] is None for each in long.stages.values())
    asked = demo._length("1h", {"pretrain": 30, "sft": None})
    assert asked.stages["pretrain"] == {"train.steps": 30}
    assert set(asked.stages["sft"]) == {"train.steps", "train.budget"}


def test_a_budget_without_time_for_training_is_refused(speed: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="--budget 2m is too short"):
        demo._length("2m", FREE)
    assert demo._length("2m", {"pretrain": 4, "sft": 3}).seconds > 0
    with pytest.raises(UserError, match='--budget = "abc" is not a time'):
        demo._length("abc", {"pretrain": None, "sft": None})
