"""The loop's promises: a step does not depend on how it was cut, and what it prints is true."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcli.config import resolve
from mmcli.errors import MmcliError
from mmcli.run import Run
from mmcli.stage import LossOutput, Silent, StageContext, Term
from mmcli.train import loop
from mmcli.train.config import OptimConfig, TrainConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.loop import train
from mmcli.train.task import Task


@dataclass(frozen=True)
class Rows:
    x: Tensor
    weights: Tensor  # how many "tokens" each row counts for
    counts: Mapping[str, float]
    tokens: int

    @classmethod
    def of(cls, x: Tensor, weights: Tensor) -> Rows:
        return cls(x, weights, {"loss": float(weights.sum()), "rows": float(len(x))}, int(weights.sum()))

    def to(self, device: torch.device) -> Rows:
        return replace(self, x=self.x.to(device), weights=self.weights.to(device))


def loss(model: nn.Module, batch: Rows) -> LossOutput:
    error = (model(batch.x)[:, 0] - batch.x.sum(dim=1)) ** 2
    return LossOutput(
        {
            "loss": Term((error * batch.weights).sum(), batch.counts["loss"]),
            "rows": Term(error.sum(), len(batch.x), 0.5),
        },
        {"seen": Term(batch.weights.sum(), float(len(batch.x)))},
    )


def task(micro_batch: int, *, poison: Collection[int] = ()) -> Task:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)

    def batches(step: int) -> list[Rows]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(12, 4, generator=generator)
        if step in poison:
            x[3] = float("nan")
        weights = torch.randint(1, 9, (12,), generator=generator)
        return [Rows.of(x[i : i + micro_batch], weights[i : i + micro_batch]) for i in range(0, 12, micro_batch)]

    def save(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    return Task(
        model=model,
        accelerator=choose_accelerator("cpu", "fp32"),
        batches=batches,
        loss=loss,
        steps_per_epoch=10.0,
        flops_per_token=1e6,
        save_model=save,
    )


def context(root: Path) -> StageContext:
    run = Run.create(root, "pretrain", "test")
    return StageContext(run, Silent(), resolve(TrainConfig, []))


def trained(root: Path, micro_batch: int, **config: Any) -> tuple[Task, list[dict[str, Any]]]:
    made, where = task(micro_batch), context(root)
    train(made, OptimConfig(lr=0.05, warmup_ratio=0.0), TrainConfig(steps=8, **config), where)
    return made, [json.loads(line) for line in where.run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("micro_batch", [1, 5, 6])
def test_a_step_does_not_depend_on_its_micro_batches(tmp_path: Path, micro_batch: int) -> None:
    whole, lines = trained(tmp_path, 12)
    parts, other = trained(tmp_path, micro_batch)
    torch.testing.assert_close(whole.model.weight, parts.model.weight, atol=1e-6, rtol=1e-5)
    for one, two in zip(lines, other, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["rows"] == pytest.approx(two["rows"], rel=1e-5)
        assert one["seen"] == two["seen"]


def test_the_loss_falls_and_is_logged_before_each_update(tmp_path: Path) -> None:
    made, lines = trained(tmp_path, 12)
    assert [line["step"] for line in lines] == list(range(8))
    fresh = task(12)
    assert fresh.batches is not None and made.batches is not None
    first = fresh.batches(0)[0]
    before, after = (loss(model, first).terms["loss"] for model in (fresh.model, made.model))
    assert lines[0]["loss"] == pytest.approx(float(before.sum.detach()) / before.count, rel=1e-6)
    assert float(after.sum) < 0.8 * float(before.sum)
    assert lines[-1]["tokens"] == sum(made.batches(step)[0].tokens for step in range(8))


def test_a_non_finite_loss_stops_the_run_and_says_where(tmp_path: Path) -> None:
    where = context(tmp_path)
    with pytest.raises(MmcliError) as caught:
        train(task(12, poison=range(3, 8)), OptimConfig(), TrainConfig(steps=8), where)
    assert "the loss became NaN or infinite at step 3" in caught.value.what
    assert "--lr" in caught.value.fix
    assert not where.run.model.exists()


def test_checkpoints_are_kept_in_number(tmp_path: Path) -> None:
    where = context(tmp_path)
    train(task(12), OptimConfig(), TrainConfig(steps=8, checkpoint_every=2, keep_checkpoints=3), where)
    assert [path.name for path in sorted(where.run.checkpoints.iterdir())] == [
        "step-000004",
        "step-000006",
        "step-000008",
    ]
    assert (where.run.model / "config.json").is_file()


def test_the_measured_step_has_one_update_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimConfig(lr=0.05, warmup_ratio=0.0)
    made, where = task(2), context(tmp_path)
    build = loop.build_optimizer

    def build_slow(*args: Any, **options: Any) -> torch.optim.Optimizer:
        found = build(*args, **options)
        found.register_step_pre_hook(lambda *_: time.sleep(0.2))
        return found

    monkeypatch.setattr(loop, "build_optimizer", build_slow)
    train(made, config, TrainConfig(steps=1), where)
    measured = where.run.read_config("resolved.toml")["measured"]["step_seconds"]
    assert 0.2 <= measured < 1.2  # one update, not one for each of the 6 micro-batches

    once, unmeasured = task(2), context(tmp_path)
    unmeasured.run.choose("measured", lambda: {"step_seconds": 0.2, "step_tokens": 1})
    train(once, config, TrainConfig(steps=1), unmeasured)
    for one, other in zip(made.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (saved, expected) = (each.run.checkpoints / "step-000001" / "optimizer.safetensors" for each in (where, unmeasured))
    assert saved.read_bytes() == expected.read_bytes()


class Clock:
    """Stands in for `time` in the loop."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def in_time(root: Path, monkeypatch: pytest.MonkeyPatch, seconds: Any, **config: Any) -> tuple[Clock, StageContext]:
    """A training whose steps take `seconds(clock)`, where the first measurement says 1 s."""
    clock, where, made = Clock(), context(root), task(12)
    where.run.choose("measured", lambda: {"step_seconds": 1.0, "step_tokens": 1})
    measured = replace(
        made, loss=lambda model, batch: (setattr(clock, "now", clock.now + seconds(clock)), loss(model, batch))[1]
    )
    monkeypatch.setattr(loop, "time", clock)
    optim = OptimConfig(lr=0.01, schedule="linear", min_lr_ratio=0.0)
    train(measured, optim, TrainConfig(eval_every=1000, **config), where)
    return clock, where


def rates(where: StageContext) -> list[float]:
    return [json.loads(line)["lr"] for line in where.run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("later", [0.1, 0.5, 1.0, 3.0])
def test_a_budget_ends_in_time_and_at_the_end_of_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    clock, where = in_time(
        tmp_path, monkeypatch, lambda clock: 1.0 if clock.now < 20 else later, budget="100s", checkpoint_every=1000
    )
    assert clock.now == pytest.approx(100, abs=2 * later + 1)
    found = rates(where)
    assert len(found) == pytest.approx(20 + 80 / later, rel=0.05)
    falls = [one - other for one, other in itertools.pairwise(found[2:])]
    assert min(falls) > 0 and max(falls) < 0.01 / 10  # it goes on from where it was, after each fit
    assert found[-1] < 0.01 / 10
    fits = where.run.read_config("resolved.toml").get("fits", [])
    assert (later == 1.0) == (len(fits) <= 1)


def test_a_budget_takes_no_more_steps_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, where = in_time(tmp_path, monkeypatch, lambda clock: 0.1, budget="100s", steps=60)
    assert len(rates(where)) == 60 and clock.now == pytest.approx(6)
