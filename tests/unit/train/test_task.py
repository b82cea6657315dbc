"""The contract: a task says what is trained on and what is shown, and what is shown looks the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmcli.cli.progress import is_milestone, step_line
from mmcli.model.config import ModelConfig
from mmcli.stage import Metric
from mmcli.stages.dpo import HELD_OUT_METRICS as HELD_OUT_PAIRS
from mmcli.stages.tokens import HELD_OUT_METRICS
from mmcli.train.device import Accelerator, choose_accelerator
from mmcli.train.lm import language_model_metrics
from mmcli.train.preference import PREFERENCE_METRICS
from mmcli.train.task import Task

STEP: dict[str, Any] = {"step": 310, "steps": 800, "tokens_per_second": 6_800.0, "mfu": 0.45, "eta_seconds": 340.0}
ROUTERS = {"expert_load": [0.12, 0.38, 0.25, 0.25], "expert_entropy": 0.91, "expert_dropped": 0.0}
DENSE = (*language_model_metrics(ModelConfig()), *HELD_OUT_METRICS)
MOE = (*language_model_metrics(ModelConfig(use_moe=True)), *HELD_OUT_METRICS)
DPO = (*PREFERENCE_METRICS, *HELD_OUT_PAIRS)


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "model": nn.Linear(1, 1),
        "accelerator": choose_accelerator("cpu", "fp32"),
        "batches": lambda step: [],
        "loss": None,
        "steps_per_epoch": 1.0,
        "flops_per_token": 1.0,
        "save_model": lambda folder: None,
    }
    return Task(**{**fields, **changes})


@pytest.mark.parametrize(("changes", "said"), [({"batches": None}, "batches or rollouts"), ({"metrics": ()}, "metric")])
def test_a_task_without_data_or_without_a_metric_is_refused(changes: dict[str, Any], said: str) -> None:
    assert task().metrics == (Metric("loss"),)
    with pytest.raises(ValueError, match=said):
        task(**changes)


def test_a_format_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError):
        Metric("loss", ".3q")


@pytest.mark.parametrize(
    ("metric", "value", "text", "title"),
    [
        (Metric("loss"), 1.8534, "loss 1.853", "loss"),
        (Metric("val_bits_per_byte", ".4f"), 0.81239, "bits per byte 0.8124", "bits per byte"),
        (Metric("val_loss", label="val"), 2, "val 2.000", "loss"),
        (Metric("reward", ".1%"), 0.5234, "reward 52.3%", "reward"),
        (Metric("expert_load", ".0%", "experts"), [0.25, 0.125, 0.375], "experts 12-38%", "expert load"),
        (Metric("margins", ".1f"), [0.25, -1.0], "margins -1.0-0.2", "margins"),
        (Metric("expert_entropy", ".2f", "H"), 1.0, "H1.00", "expert entropy"),
    ],
)
def test_a_value_is_shown_as_declared(metric: Metric, value: Any, text: str, title: str) -> None:
    assert (metric.text(value), metric.title) == (text, title)


@pytest.mark.parametrize(
    ("values", "metrics", "line"),
    [
        ({"loss": 1.853}, DENSE, "step 310/800  loss 1.853  6.8k tok/s  mfu 45%  eta 5m40s"),
        (
            {"loss": 1.853, "val_loss": 1.9, "val_bits_per_byte": 0.812},
            DENSE,
            "step 310/800  loss 1.853  val 1.900  bpb 0.812  6.8k tok/s  mfu 45%  eta 5m40s",
        ),
        (
            {"loss": 1.853, "balance": 1.0, **ROUTERS},
            MOE,
            "step 310/800  loss 1.853  6.8k tok/s  experts 12-38% H0.91 drop 0  eta 5m40s",
        ),
        (
            {"loss": 1.853, **ROUTERS, "val_loss": 1.9, "val_bits_per_byte": 0.812},
            MOE,
            "step 310/800  loss 1.853  val 1.900  bpb 0.812  6.8k tok/s  mfu 45%  eta 5m40s",
        ),
        (
            {"dpo_loss": 0.6931, "margin": 0.01, "accuracy": 0.5, "chosen_logp": -9.0},
            DPO,
            "step 310/800  loss 0.693  margin 0.010  acc 0.500  6.8k tok/s  eta 5m40s",
        ),
        (
            {"loss": -0.02, "reward": 0.5234, "val_reward": 0.6, "kl": None},
            (Metric("reward", ".1%"), Metric("loss", "+.2f"), Metric("val_reward", ".0%", "val"), Metric("kl")),
            "step 310/800  reward 52.3%  loss -0.02  val 60%  6.8k tok/s  mfu 45%  eta 5m40s",
        ),
    ],
    ids=["dense", "dense validated", "experts", "experts validated", "dpo", "a plugin's reward"],
)
def test_the_line_of_a_step(values: dict[str, Any], metrics: tuple[Metric, ...], line: str) -> None:
    assert step_line({**STEP, **values}, metrics) == line
    assert len(line) <= 80


def test_a_validated_step_and_the_last_are_kept() -> None:
    metrics = (Metric("reward"), Metric("val_reward"))
    assert is_milestone({**STEP, "val_reward": 0.5}, metrics)
    assert is_milestone({**STEP, "step": 800}, metrics)
    assert not is_milestone({**STEP, "reward": 0.5}, metrics)
    assert not is_milestone({**STEP, "val_loss": 0.5}, metrics)  # not shown by this task


def test_memory_is_pinned_for_cuda_alone() -> None:
    assert not Accelerator(torch.device("cpu"), "fp32").pins_memory
    assert Accelerator(torch.device("cuda", 0), "bf16").pins_memory
