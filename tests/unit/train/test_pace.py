"""The pace of a training against its own usual one."""

from __future__ import annotations

import sys

import pytest

import mmcli.train.pace
from mmcli.train.pace import Pace, describe_load


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each look at the load."""
    found: list[int] = []

    def look() -> str:
        found.append(1)
        return "load 3.9 on 2 cores, python3 98%"

    monkeypatch.setattr(mmcli.train.pace, "describe_load", look)
    return found


def test_slow_steps_are_said_with_the_load_and_no_longer_than_they_last(looks: list[int]) -> None:
    pace = Pace()
    assert {pace.add(0.5, 2048) for _ in range(50)} == {""}
    said = [pace.add(2.5, 2048) for _ in range(5)]
    assert said[-1] == "the machine is busy: steps take 5.0x as long (load 3.9 on 2 cores, python3 98%)"
    assert [pace.add(0.5, 2048) for _ in range(8)][-1] == ""
    assert len(looks) == 1


def test_a_single_slow_step_longer_rows_and_the_first_steps_are_nothing(looks: list[int]) -> None:
    pace = Pace()
    assert pace.add(30.0, 1024) == ""  # compiles
    assert {pace.add(0.1, 1024) for _ in range(100)} == {""}
    assert pace.add(2.0, 1024) == ""  # a hiccup among 30 steps of the same three seconds
    assert {pace.add(0.1, 1024) for _ in range(100)} == {""}
    assert {pace.add(0.4, 4096) for _ in range(100)} == {""}
    assert not looks


def test_the_usual_pace_is_of_the_whole_training(looks: list[int]) -> None:
    pace = Pace()
    for _ in range(20_000):
        pace.add(0.01, 64)
    assert len(pace._paces) < 256
    said = [pace.add(0.05, 64) for _ in range(2_000)]
    assert said[-1].startswith("the machine is busy: steps take 5.0x")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_load_is_described() -> None:
    assert describe_load().startswith("load ")
