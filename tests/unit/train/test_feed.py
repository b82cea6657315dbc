"""Batches of a step: prepared ahead in a thread, moved one at a time, and made of what the model itself writes."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmcli.config import resolve
from mmcli.data.pack.batches import Batch
from mmcli.errors import MmcliError
from mmcli.generate.engine import Engine
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.stage import LossOutput, Silent, StageContext, Term
from mmcli.train.config import OptimConfig, TrainConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.feed import Feed, live_engine
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.loop import train
from mmcli.train.task import Rollouts, Task

CPU = choose_accelerator("cpu", "fp32")
CONFIG = ModelConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=40, max_seq_len=16)


@dataclass(frozen=True)
class Numbers:
    x_BD: Tensor
    on_device: weakref.WeakSet[Any]

    @property
    def counts(self) -> Mapping[str, float]:
        return {"loss": float(len(self.x_BD))}

    @property
    def tokens(self) -> int:
        return len(self.x_BD)

    def to(self, device: torch.device) -> Moved:
        moved = Moved(self.x_BD.to(device))
        self.on_device.add(moved)
        return moved


class Moved:
    def __init__(self, x_BD: Tensor) -> None:
        self.x_BD = x_BD


class Recorder:
    """A task of four micro-batches a step, which notes who asked for which step."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.asked: list[tuple[int, str]] = []
        self.on_device: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most_on_device = 0
        self.fails_at = fails_at

    def batches(self, step: int) -> list[Numbers]:
        self.asked.append((step, threading.current_thread().name))
        if step == self.fails_at:
            raise MmcliError("the data broke at row 7", "fix row 7")
        generator = torch.Generator().manual_seed(step)
        return [Numbers(torch.randn(3, 4, generator=generator), self.on_device) for _ in range(4)]

    def loss(self, model: Any, batch: Moved) -> LossOutput:
        self.most_on_device = max(self.most_on_device, len(self.on_device))
        return LossOutput({"loss": Term(model(batch.x_BD).square().sum(), float(len(batch.x_BD)))})

    def task(self) -> Task:
        torch.manual_seed(0)
        return Task(
            model=nn.Linear(4, 1),
            accelerator=CPU,
            batches=self.batches,
            loss=self.loss,
            steps_per_epoch=10.0,
            flops_per_token=1e6,
            save_model=lambda folder: (folder / "config.json").touch(),
        )


def context(root: Path, run: Run | None = None) -> StageContext:
    resume = run is not None
    return StageContext(run or Run.create(root, "pretrain", "test"), Silent(), resolve(TrainConfig, []), resume)


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_each_step_is_prepared_once_in_a_thread_that_ends(tmp_path: Path) -> None:
    recorder = Recorder()
    train(recorder.task(), OptimConfig(), TrainConfig(steps=5), context(tmp_path))
    assert [step for step, _ in recorder.asked] == [0, 1, 2, 3, 4]
    assert all(thread.startswith("batches") for _, thread in recorder.asked)
    assert not batch_threads()


def test_one_micro_batch_is_on_the_device_at_a_time(tmp_path: Path) -> None:
    recorder = Recorder()
    train(recorder.task(), OptimConfig(), TrainConfig(steps=3), context(tmp_path))
    assert recorder.most_on_device == 1


def test_the_next_step_is_prepared_while_this_one_runs() -> None:
    recorder = Recorder()
    with Feed(recorder.task(), seed=0) as feed:
        feed.batches(3)
        for _ in range(1000):
            if len(recorder.asked) == 2:
                break
            threading.Event().wait(0.01)
        assert [step for step, _ in recorder.asked] == [3, 4]
        first = feed.batches(4, last=True)
        assert feed.batches(4, last=True)[0] is first[0]  # kept: a probe and the step itself see the same
        assert [step for step, _ in recorder.asked] == [3, 4]
        alone = recorder.batches(4)
    assert all(torch.equal(a.x_BD, b.x_BD) for a, b in zip(first.values(), alone, strict=True))  # type: ignore[attr-defined]


def test_what_the_thread_raises_comes_out_of_the_loop_and_the_thread_ends(tmp_path: Path) -> None:
    recorder = Recorder(fails_at=3)
    where = context(tmp_path)
    with pytest.raises(MmcliError, match="the data broke at row 7") as caught:
        train(recorder.task(), OptimConfig(), TrainConfig(steps=8, checkpoint_every=1), where)
    assert caught.value.fix == "fix row 7"
    assert [json.loads(line)["step"] for line in where.run.metrics.read_text().splitlines()] == [0, 1, 2]
    assert not batch_threads()


def test_the_thread_ends_when_the_loss_raises(tmp_path: Path) -> None:
    def broken(model: Any, batch: Any) -> LossOutput:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(Recorder().task(), loss=broken), OptimConfig(), TrainConfig(steps=8), context(tmp_path))
    assert not batch_threads()


def test_a_step_without_a_batch_is_refused(tmp_path: Path) -> None:
    task = replace(Recorder().task(), batches=lambda step: [])
    with pytest.raises(MmcliError, match="step 0 has no batch"):
        train(task, OptimConfig(), TrainConfig(steps=2), context(tmp_path))


# Rollouts


def rewarded(engine: Engine, step: int) -> list[TokenBatch]:
    """Rows that the model writes after a token drawn with torch, to be learned."""
    prompt = int(torch.randint(0, CONFIG.vocab_size, ()))
    rows = []
    for slot in range(engine.slots):
        sampling = SamplingConfig(temperature=1.0, seed=step * engine.slots + slot)
        rows.append([prompt, *generate(engine, slot, [prompt], sampling, max_new_tokens=8)])
    ids = np.array(rows, dtype=np.int64)
    positions = np.tile(np.arange(8), (len(ids), 1))
    batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), positions, np.zeros_like(positions))
    return [TokenBatch.from_batch(batch, CONFIG)]


def rollout_task(model: Transformer, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "model": model,
        "accelerator": CPU,
        "rollouts": Rollouts(rewarded, slots=2, max_len=16),
        "loss": lambda model, batch: language_model_loss(model, batch, model.config),
        "steps_per_epoch": 4.0,
        "flops_per_token": 1e6,
        "save_model": lambda folder: (folder / "config.json").touch(),
    }
    return Task(**{**fields, **changes})


def dropping() -> Transformer:
    return Transformer(replace(CONFIG, dropout=0.1), seed=3)


def test_a_training_on_rollouts_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    config = TrainConfig(steps=8, checkpoint_every=2, keep_checkpoints=9)
    whole = context(tmp_path)
    train(rollout_task(dropping()), OptimConfig(lr=0.01), config, whole)
    stopped = Run(tmp_path / "0002-pretrain-test")
    shutil.copytree(whole.run.path, stopped.path)
    for late in ("step-000006", "step-000008"):
        shutil.rmtree(stopped.checkpoints / late)
    train(rollout_task(dropping()), OptimConfig(lr=0.01), config, context(tmp_path, stopped))
    for name in ("weights", "optimizer"):
        path = f"step-000008/{name}.safetensors"
        assert (whole.run.checkpoints / path).read_bytes() == (stopped.checkpoints / path).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()] for run in (whole.run, stopped)
    ]
    assert losses[0] == losses[1] and len(set(losses[0])) == 8


def test_rollouts_are_made_with_the_weights_of_their_step(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def watch(engine: Any, step: int) -> list[TokenBatch]:
        assert not any(module.training for module in engine.model.modules()) and not torch.is_grad_enabled()
        seen.append(engine.model.head_weight.detach().clone())
        return rewarded(engine, step)

    model = dropping()
    watched = rollout_task(model, rollouts=Rollouts(watch, max_len=16))
    train(watched, OptimConfig(lr=0.01), TrainConfig(steps=3), context(tmp_path))
    probed, *steps = seen
    assert torch.equal(probed, steps[0])
    assert len(steps) == 3 and not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])


def test_an_engine_over_a_live_model_leaves_modes_and_randomness_as_they_were() -> None:
    model = dropping().train()
    model.model.layers[1].eval()  # a part that the task keeps in eval mode
    modes = [module.training for module in model.modules()]
    torch.manual_seed(11)
    expected = torch.randn(4)
    torch.manual_seed(11)
    drawn = []
    for step in (5, 5, 6):
        with live_engine(model, Rollouts(rewarded, max_len=16), CPU, 0, step) as engine:
            engine.prefill(0, [1, 2, 3])
            drawn.append(torch.randn(4))
        assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.randn(4), expected)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ZeroDivisionError), live_engine(model, Rollouts(rewarded), CPU, 0, 1):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes


def test_batches_of_data_and_of_rollouts_make_one_step() -> None:
    model = dropping()
    row = np.arange(9)[None]
    data = Batch(row[:, :-1].copy(), row[:, 1:].copy(), row[:, :-1].copy(), np.zeros((1, 8), dtype=np.int64))
    task = rollout_task(model, batches=lambda step: [TokenBatch.from_batch(data, CONFIG)])
    with Feed(task, seed=0) as feed:
        first, second = feed.batches(0, last=True).values()
    assert first.tokens == 8 and second.tokens == 16
