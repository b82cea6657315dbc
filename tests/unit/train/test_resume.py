"""A training that goes on from a checkpoint ends in the same bytes: each optimizer, each schedule, fits of a budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.config import resolve
from mmcli.data.pack.batches import Batch
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.stage import Silent, StageContext
from mmcli.train.config import OptimConfig, TrainConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.loop import train
from mmcli.train.plan import FITS
from mmcli.train.task import Task

CONFIG = ModelConfig(
    dim=16, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=40, max_seq_len=16, use_moe=True, dropout=0.1
)
STEPS = 10
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"schedule": "cosine"},
    "linear to zero": {"schedule": "linear", "min_lr_ratio": 0.0},
    "wsd": {"schedule": "wsd", "beta2": 0.99},
    "cosine over the last half": {"schedule": "cosine", "decay_ratio": 0.5},
}


def task() -> Task:
    def batches(step: int) -> list[TokenBatch]:
        ids = np.random.default_rng(step).integers(0, 40, (4, 17))
        zeros = np.zeros((2, 16), dtype=np.int64)
        return [
            TokenBatch.from_batch(Batch(part[:, :-1].copy(), part[:, 1:].copy(), zeros + np.arange(16), zeros), CONFIG)
            for part in (ids[:2], ids[2:])
        ]

    return Task(
        model=Transformer(CONFIG, seed=3),
        accelerator=choose_accelerator("cpu", "fp32"),
        batches=batches,
        loss=lambda model, batch: language_model_loss(model, batch, CONFIG),
        steps_per_epoch=10.0,
        flops_per_token=1e6,
        save_model=lambda folder: (folder / "config.json").touch(),
    )


def run_of(root: Path, run: Run | None, optim: OptimConfig) -> Run:
    """A new run, or one that is resumed, trained to its end."""
    resume = run is not None
    where = StageContext(run or Run.create(root, "pretrain", "test"), Silent(), resolve(TrainConfig, []), resume)
    if not resume:  # a budget that was fitted anew in the third step and in the eighth
        where.run.record_choice(FITS, [[2, STEPS - 2], [7, STEPS]])
    train(task(), optim, TrainConfig(steps=STEPS + 4, checkpoint_every=1, keep_checkpoints=99), where)
    return where.run


def values(run: Run) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_ends_in_the_same_bytes_from_any_step(tmp_path: Path, optimizer: str, schedule: str) -> None:
    optim = OptimConfig(optimizer=optimizer, lr=0.01, warmup_ratio=0.2, **SCHEDULES[schedule])  # type: ignore[arg-type]
    whole = run_of(tmp_path, None, optim)
    wanted, last = values(whole), whole.checkpoints / f"step-{STEPS:06d}"
    assert len(wanted) == STEPS and len({lr for _, _, lr, _ in wanted}) > 3
    for step in (1, 4, 8):  # in the warm-up, after the first fit, after the second
        copy = tmp_path / f"from-{step}"
        shutil.copytree(whole.path, copy)
        for path in (copy / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        resumed = run_of(tmp_path, Run(copy), optim)
        assert values(resumed) == wanted
        for name in ("weights.safetensors", "optimizer.safetensors"):
            assert (resumed.checkpoints / last.name / name).read_bytes() == (last / name).read_bytes()
