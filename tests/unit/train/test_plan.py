"""The plan of a training: chosen from what one step costs, once, and kept on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmcli.config import resolve
from mmcli.errors import UserError
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.train import plan as planning
from mmcli.train.config import TrainConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.plan import Plan, make_plan
from mmcli.train.task import Task


class Lines(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def planned(
    root: Path,
    step_seconds: float,
    *,
    evaluation_tokens: int = 0,
    validates: bool = False,
    resume: bool = False,
    compiled_seconds: float | None = None,
    **config: Any,
) -> Any:
    """(plan, what was said) of a task with 50 steps an epoch, 1000 tokens each."""
    task = Task(
        model=nn.Linear(1, 1),
        accelerator=choose_accelerator("cpu", "fp32"),
        batches=lambda step: [],
        loss=lambda model, batch: batch,
        steps_per_epoch=50.0,
        flops_per_token=1.0,
        save_model=lambda folder: None,
        evaluate=(lambda model: {}) if validates else None,
        evaluation_tokens=evaluation_tokens,
    )
    run = Run(root / "0001-pretrain-test") if resume else Run.create(root, "pretrain", "test")
    lines = Lines()
    where = StageContext(run, lines, resolve(TrainConfig, []), resume)

    def probe(compiled: bool) -> tuple[float, int]:
        assert not resume, "a resumed run does not measure again"
        assert not compiled or compiled_seconds is not None, "too short to compile"
        return (compiled_seconds or 0.0) if compiled else step_seconds, 1000

    return make_plan(task, TrainConfig(**config), where, probe), lines


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, 50),
        ({"epochs": 2.5}, 125),
        ({"epochs": 0.001}, 1),
        ({"steps": 7}, 7),
        ({"budget": "100s"}, 190),  # 0.95 * 100 / 0.5
        ({"budget": "100s", "steps": 7}, 7),
        ({"budget": "100s", "steps": 1000}, 190),
        ({"budget": "1s"}, 1),
    ],
)
def test_steps_come_from_epochs_steps_or_the_budget(tmp_path: Path, config: dict[str, Any], steps: int) -> None:
    plan, lines = planned(tmp_path, 0.5, **config)
    assert plan.steps == steps
    assert plan.budget_seconds == TrainConfig(**config).budget_seconds
    assert f"{steps:,} steps" in lines.notes[0]


def test_epochs_that_somebody_asked_for_end_a_budget(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, 0.5, epochs=2.0, budget="100s")
    assert (plan.steps, plan.most_steps) == (100, 100)
    plan, _ = planned(tmp_path, 0.5, epochs=9.0, budget="100s")
    assert (plan.steps, plan.most_steps) == (190, 450)
    plan, _ = planned(tmp_path, 0.5, budget="100s")
    assert (plan.steps, plan.most_steps) == (190, None)


@pytest.mark.parametrize("name", ["steps", "eval_every", "sample_every", "checkpoint_every", "micro_batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_interval_is_one_or_more(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"train.{name} = {value} is below 1"):
        TrainConfig(**{name: value})


def test_the_time_is_told_at_once_and_a_budget_where_it_is_long(tmp_path: Path) -> None:
    assert planned(tmp_path, 0.001)[1].notes == ["50 steps (1 epochs), about 1s"]
    _, lines = planned(tmp_path, 200.0, compile="off")
    assert lines.notes == ["50 steps (1 epochs), about 2h46m", "to train for a fixed time: --budget 20m"]
    assert len(planned(tmp_path, 200.0, compile="off", budget="3h")[1].notes) == 1


def test_the_time_told_counts_the_validations(tmp_path: Path) -> None:
    """50 steps of 0.1 s; a validation of 150,000 tokens is 150 steps' forward passes: 5 s, before, and at the end."""
    plan, lines = planned(tmp_path, 0.1, evaluation_tokens=150_000, validates=True)
    assert plan.evaluation_seconds == pytest.approx(5.0)
    assert lines.notes[0] == "50 steps (1 epochs), about 15s"


@pytest.mark.parametrize(
    ("evaluation_tokens", "config", "every"),
    [
        (0, {}, 5),  # ten in all
        (15_000, {}, 50),  # each costs five steps, a tenth of all: one
        (3_000, {}, 10),  # each costs one step: five
        (10**9, {}, 50),
        (10**9, {"eval_every": 3}, 3),
    ],
)
def test_evaluations_take_at_most_a_tenth_of_the_time(
    tmp_path: Path, evaluation_tokens: int, config: dict[str, Any], every: int
) -> None:
    assert planned(tmp_path, 0.1, evaluation_tokens=evaluation_tokens, **config)[0].eval_every == every


def test_it_compiles_where_that_pays_and_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "can_compile", lambda device: True)
    assert not planned(tmp_path, 17.9)[0].compile  # 895 seconds
    plan, lines = planned(tmp_path, 18.1, compiled_seconds=17.0)
    assert plan.compile and lines.notes[-1].endswith(", compiled")
    assert "a compiled step takes 0.94 times as long as an eager one" in lines.notes
    assert planned(tmp_path, 0.1, compile="on")[0].compile and not planned(tmp_path, 99.0, compile="off")[0].compile
    monkeypatch.setattr(planning, "can_compile", lambda device: False)
    plan, lines = planned(tmp_path, 18.1)
    assert not plan.compile and "needs a C++ compiler" in lines.notes[0]


def test_a_compiled_step_that_is_not_quicker_is_left_and_never_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "can_compile", lambda device: True)
    plan, lines = planned(tmp_path, 18.1, compiled_seconds=18.2)
    assert not plan.compile and lines.notes[1].endswith("1.01 times as long as an eager one: eager")
    assert not planned(tmp_path, 18.1, resume=True)[0].compile


def first_device(root: Path) -> str:
    return str(Run(root / "0001-pretrain-test").read_config("resolved.toml")["device"])


def test_a_resumed_run_keeps_its_plan_and_names_what_is_not_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, lines = planned(tmp_path, 0.5, budget="100s")
    assert lines.warnings == []
    again, lines = planned(tmp_path, 9.0, resume=True, budget="100s")
    assert again == first and lines.warnings == []
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 2)
    _, lines = planned(tmp_path, 9.0, resume=True, budget="100s")
    assert lines.warnings == [f"resumes, not bit-exactly: threads {threads} -> {threads + 2}"]
    monkeypatch.undo()
    capability = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    monkeypatch.setattr(planning, "describe_device", lambda device: "cpu of another machine")
    _, lines = planned(tmp_path, 9.0, resume=True, budget="100s")
    device = first_device(tmp_path)
    assert lines.warnings == [
        f"resumes, not bit-exactly: cpu capability {capability} -> OTHER",
        f"resumes, not bit-exactly: device {device} -> cpu of another machine",
    ]


def test_checkpoints_come_by_steps_or_by_time() -> None:
    timed = Plan(steps=9, compile=False, eval_every=1, sample_every=1, checkpoint_every=None, budget_seconds=None)
    assert not timed.checkpoint_due(1, 89.0, first=True) and timed.checkpoint_due(1, 91.0, first=True)
    assert not timed.checkpoint_due(1, 299.0, first=False) and timed.checkpoint_due(1, 301.0, first=False)
    counted = Plan(steps=9, compile=False, eval_every=1, sample_every=1, checkpoint_every=4, budget_seconds=None)
    assert [step for step in range(1, 10) if counted.checkpoint_due(step, 1e9, first=True)] == [4, 8]
