"""Nothing bad is saved, and nothing is lost: numbers that are not finite, a full disk, memory that does not suffice."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcli.config import resolve
from mmcli.errors import Interrupted, MmcliError, Stopped, UserError
from mmcli.manifest import damage
from mmcli.model.config import ModelConfig
from mmcli.run import Run
from mmcli.stage import LossOutput, Metric, Silent, StageContext, Term
from mmcli.stages.start import choose_micro_batch
from mmcli.train import journal, loop
from mmcli.train.config import OptimConfig, TrainConfig
from mmcli.train.device import choose_accelerator
from mmcli.train.finite import Diverged, too_many_skipped
from mmcli.train.loop import train
from mmcli.train.saving import lower_rate
from mmcli.train.task import StepBatch, Task


@dataclass(frozen=True)
class Rows:
    x: Tensor
    counts: Mapping[str, float]
    tokens: int

    def to(self, device: torch.device) -> Rows:
        return self


def loss(model: nn.Module, batch: Rows) -> LossOutput:
    error = (model(batch.x)[:, 0] - batch.x.sum(dim=1)) ** 2
    return LossOutput({"loss": Term(error.sum(), batch.counts["loss"])})


def task(micro_batch: int = 12, *, poison: Collection[int] = ()) -> Task:
    """A linear model; row 3 of the steps `poison` is NaN."""
    torch.manual_seed(0)

    def batches(step: int) -> list[Rows]:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        if step in poison:
            x[3] = float("nan")
        return [Rows(part, {"loss": float(len(part))}, len(part)) for part in x.split(micro_batch)]

    return Task(
        model=nn.Linear(4, 1),
        accelerator=choose_accelerator("cpu", "fp32"),
        batches=batches,
        loss=loss,
        steps_per_epoch=10.0,
        flops_per_token=1e6,
        save_model=lambda folder: (folder / "config.json").write_text("{}") and None,
    )


OPTIM = OptimConfig(lr=0.05, warmup_ratio=0.0)


class Lines(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def described(micro_batch: int, poison: Collection[int]) -> Task:
    def describe(step: int, where: Sequence[int]) -> str:
        return f"micro-batches {list(where)}"

    return replace(task(micro_batch, poison=poison), describe=describe)


def where(root: Path, *, resume: bool = False) -> tuple[StageContext, Lines]:
    lines = Lines()
    run = Run(root / "0001-pretrain-test") if resume else Run.create(root, "pretrain", "test")
    return StageContext(run, lines, resolve(TrainConfig, []), resume), lines


def metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_a_step_with_a_poisoned_row_is_skipped_named_and_counted(tmp_path: Path) -> None:
    context, lines = where(tmp_path)
    made = described(3, {3})
    train(made, OPTIM, TrainConfig(steps=8), context)
    assert all(bool(p.isfinite().all()) for p in made.model.parameters())
    # Row 3 is in the second of four micro-batches.
    assert lines.warnings == ["step 3 skipped: the loss became NaN or infinite (micro-batches [1])"]
    assert context.run.info()["steps_skipped"] == 1
    assert [line["step"] for line in metrics(context.run) if line.get("skipped")] == [3]
    assert metrics(context.run)[3]["loss"] is None and metrics(context.run)[4]["loss"] > 0


def test_ten_in_a_row_end_it_at_the_last_good_checkpoint(tmp_path: Path) -> None:
    context, lines = where(tmp_path)
    with pytest.raises(Diverged) as caught:
        train(task(12, poison=range(5, 99)), OPTIM, TrainConfig(steps=99, checkpoint_every=2), context)
    assert "at step 5" in caught.value.what and "10 steps were skipped" in caught.value.what
    assert "--lr-scale 0.5" in caught.value.fix
    assert len(lines.warnings) == 10
    assert [path.name for path in sorted(context.run.checkpoints.iterdir())] == ["step-000002", "step-000004"]


def test_how_many_may_be_skipped() -> None:
    assert not too_many_skipped(9, 10, 100) and too_many_skipped(10, 10, 100_000)
    assert too_many_skipped(1, 11, 1000) and not too_many_skipped(1, 1000, 100_000)
    assert too_many_skipped(1, 1001, 100_000)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """A rate so high that the update itself overflows: the last step's loss was still finite."""
    context, _ = where(tmp_path)
    huge = OptimConfig(lr=1e38, warmup_ratio=0.0, weight_decay=1.0)
    with pytest.raises(Diverged) as caught:
        train(task(12), huge, TrainConfig(steps=1), context)
    assert "weights became NaN or infinite" in caught.value.what
    assert not context.run.model.exists() and not context.run.checkpoints.exists()


def test_an_absurd_rate_is_a_failed_training_and_leaves_finite_checkpoints(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    with pytest.raises(Diverged):
        train(task(12), OptimConfig(lr=1e38), TrainConfig(steps=30, checkpoint_every=1), context)
    for path in context.run.checkpoints.glob("*/weights.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(path).values())


def test_a_resume_takes_the_rate_that_was_recorded(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    train(task(12), OPTIM, TrainConfig(steps=4), context)
    context.run.record_choice("lr_scale", 0.5)
    context.run.record_choice("steps", 6)
    again, _ = where(tmp_path, resume=True)
    train(task(12), OPTIM, TrainConfig(steps=6), again)
    rates = [line["lr"] for line in metrics(again.run)]
    whole, _ = where(tmp_path / "whole")
    train(task(12), OPTIM, TrainConfig(steps=6), whole)
    expected = [line["lr"] for line in metrics(whole.run)]
    assert rates[4:6] == [pytest.approx(0.5 * rate) for rate in expected[4:]]


def test_a_resume_from_a_bad_checkpoint_tries_the_one_before(tmp_path: Path) -> None:
    """Weights that are finite, and so large that no loss is: no step from there can be finite."""
    context, _ = where(tmp_path)
    train(task(12), OPTIM, TrainConfig(steps=6, checkpoint_every=2), context)
    whole = {p.name: p for p in context.run.checkpoints.iterdir()}
    assert set(whole) == {"step-000004", "step-000006"}
    _overwrite(whole["step-000006"], 1e30)
    context.run.record_choice("steps", 40)
    again, lines = where(tmp_path, resume=True)
    made = task(12)
    train(made, OPTIM, TrainConfig(steps=40), again)
    assert any("step-000006 leads to no finite loss; going back" in line for line in lines.warnings)
    assert all(bool(p.isfinite().all()) and float(p.abs().max()) < 10 for p in made.model.parameters())


def test_what_is_trained_after_going_back_from_the_end_is_saved(tmp_path: Path) -> None:
    """The last checkpoint is finite and its held-out loss is not: the steps that led there are done again."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"val_loss": float(sum(p.square().sum() for p in model.parameters()))}

    context, _ = where(tmp_path)
    train(task(12), OPTIM, TrainConfig(steps=6, checkpoint_every=2), context)
    _overwrite(context.run.checkpoints / "step-000006", 1e30)
    again, lines = where(tmp_path, resume=True)
    made = replace(task(12), metrics=(Metric("loss"), Metric("val_loss")), evaluate=evaluate)
    train(made, OPTIM, TrainConfig(steps=6, checkpoint_every=2, eval_every=2), again)
    assert any("step-000006 leads to no finite loss" in line for line in lines.warnings)
    assert kept(context.run) == ["step-000004", "step-000006"]
    saved = load_file(context.run.checkpoints / "step-000006" / "weights.safetensors")
    assert all(float(each.abs().max()) < 10 for each in saved.values())
    assert all(each is None or each < 100 for each in (line.get("val_loss") for line in metrics(context.run)))


def test_a_run_that_diverges_again_is_told_half_of_its_rate(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    assert lower_rate(context.run).endswith("mmcli resume 1 --runs-dir " + str(tmp_path) + " --lr-scale 0.5")
    context.run.record_choice("lr_scale", 0.5)
    assert lower_rate(context.run).endswith("--lr-scale 0.25")


def test_a_checkpoint_with_nan_is_passed_over(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    train(task(12), OPTIM, TrainConfig(steps=6, checkpoint_every=2), context)
    _overwrite(context.run.checkpoints / "step-000006", float("nan"))
    again, lines = where(tmp_path, resume=True)
    made = task(12)
    train(made, OPTIM, TrainConfig(steps=6), again)
    assert any("step-000006 has a value that is NaN or infinite (weight)" in line for line in lines.warnings)
    assert all(bool(p.isfinite().all()) for p in made.model.parameters())


def _overwrite(checkpoint: Path, value: float) -> None:
    """Fill the weights of a checkpoint with one value, and seal it again."""
    path, manifest = checkpoint / "weights.safetensors", checkpoint / "manifest.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    save_file({name: torch.full_like(each, value) for name, each in load_file(path).items()}, path)
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(before, after))


VAL_LOSS = Metric("val_loss")
Usage = namedtuple("Usage", "total used free")


def validated(values: dict[int, float]) -> Task:
    """A task whose held-out loss is the next of `values`, by the number of the validation."""
    left = list(values.values())
    return replace(
        task(12), metrics=(Metric("loss"), Metric("val_loss")), evaluate=lambda model: {"val_loss": left.pop(0)}
    )


def kept(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def measuring(values: Sequence[float], metric: Metric = VAL_LOSS) -> Task:
    """A task that measures `values` one after the other; its model's folder tells the weights."""
    made, left = task(12), list(values)

    def save(folder: Path) -> None:
        weights = [float(each) for each in made.model.state_dict()["weight"][0]]
        (folder / "config.json").write_text(json.dumps(weights))

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {metric.name: left.pop(0)}

    return replace(made, metrics=(Metric("loss"), metric), evaluate=evaluate, save_model=save)


def weights_after(steps: int, root: Path) -> str:
    """config.json of a model after so many steps of twelve."""
    context, _ = where(root)
    with contextlib.suppress(Interrupted):
        train(
            replace(measuring([]), evaluate=None),
            OPTIM,
            TrainConfig(steps=12, checkpoint_every=steps, keep_checkpoints=9),
            context,
        )
    stored = load_file(context.run.checkpoints / f"step-{steps:06d}" / "weights.safetensors")
    return json.dumps([float(each) for each in stored["weight"][0]])


ALL_TWO = TrainConfig(steps=12, checkpoint_every=5, eval_every=2)


def test_the_model_with_the_best_held_out_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very step at which it was measured, whether a checkpoint was due then or not."""
    context, lines = where(tmp_path)
    notes: list[str] = []
    monkeypatch.setattr(lines, "note", notes.append)
    adapters: list[int] = []
    made = replace(measuring([0.5, 4.0, 2.0, 1.0, 3.0, 5.0, 6.0]), save_adapter=lambda: adapters.append(1))
    train(made, OPTIM, ALL_TWO, context)
    assert len(adapters) == 3  # with each `model/`: after 5, 10 and 12 steps
    assert context.run.info()["best"] == {"step": 6, "val_loss": 1.0}
    expected = weights_after(6, tmp_path / "six")
    assert (context.run.best / "config.json").read_text() == expected
    assert damage(context.run.best, needed=["config.json"]) is None
    assert (context.run.model / "config.json").read_text() != expected
    assert notes[-1] == f"held-out loss was best after step 6 (1.000); that model: {context.run.best}"
    context, _ = where(tmp_path / "without")
    train(measuring([9.0, 4.0, 2.0, 1.0, 3.0, 5.0, 6.0]), OPTIM, replace(ALL_TWO, keep_best=False), context)
    assert not context.run.best.exists() and "best" not in context.run.info()


def test_a_training_that_ends_with_its_best_model_keeps_one(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    train(measuring([9.0, 4.0, 2.0, 1.0, 3.0, 5.0, 0.5]), OPTIM, ALL_TWO, context)
    assert context.run.info()["best"] == {"step": 12, "val_loss": 0.5}
    assert not context.run.best.exists() and context.run.model.is_dir()


def test_of_a_reward_the_highest_is_the_best(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    metric = Metric("val_reward", higher_is_better=True)
    train(measuring([0.0, -4.0, 0.0, -2.0, -3.0, -5.0, -1.0], metric), OPTIM, ALL_TWO, context)
    assert context.run.info()["best"] == {"step": 4, "val_reward": 0.0}
    assert context.run.best.is_dir()


def test_the_best_model_of_a_run_that_is_resumed_stays(tmp_path: Path) -> None:
    """It was stopped at the best step, whose weights `model/` had until later ones replaced them."""
    context, _ = where(tmp_path)
    made = measuring([9.0, 4.0, 1.0])
    stop = replace(made, loss=interrupting(made, 4))
    with pytest.raises(Interrupted):
        train(stop, OPTIM, ALL_TWO, context)
    assert context.run.info()["best"] == {"step": 4, "val_loss": 1.0}
    again, _ = where(tmp_path, resume=True)
    train(measuring([2.0, 3.0, 5.0, 6.0, 7.0]), OPTIM, ALL_TWO, again)
    assert again.run.info()["best"] == {"step": 4, "val_loss": 1.0}
    assert (again.run.best / "config.json").read_text() == weights_after(4, tmp_path / "four")


def interrupting(made: Task, after: int) -> Callable[[nn.Module, Any], LossOutput]:
    """Its loss, which stops the training in the last of `after` steps; the measured steps do not count."""
    steps: list[int] = []

    def stopping(model: nn.Module, batch: Any) -> LossOutput:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            steps.append(1)
            if len(steps) == after:
                signal.raise_signal(signal.SIGTERM)
        return loss(model, batch)

    return stopping


def test_a_disk_too_full_for_the_best_model_is_told_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, lines = where(tmp_path)
    free(monkeypatch, 10**9, 100, 10**9)
    train(measuring([9.0, 4.0, 5.0, 5.0, 5.0, 5.0, 6.0]), OPTIM, ALL_TWO, context)
    assert any("cannot keep the best model so far, of step 2" in line for line in lines.warnings)
    assert context.run.model.is_dir()
    assert context.run.info()["best"] == {"step": 4, "val_loss": 5.0}  # the best of those that could be kept
    assert (context.run.best / "config.json").read_text() == weights_after(4, tmp_path / "four")


@pytest.mark.parametrize("stopped", [True, False])
def test_the_end_is_saved_before_it_is_validated(tmp_path: Path, stopped: bool) -> None:
    """So a Ctrl-C that ends a long validation loses nothing."""
    context, _ = where(tmp_path)
    saved: list[bool] = []

    def interrupted(model: nn.Module, batch: Rows) -> LossOutput:
        if stopped and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # not in the step that is measured
            signal.raise_signal(signal.SIGTERM)
        return loss(model, batch)

    def evaluate(model: nn.Module) -> dict[str, float]:
        saved.append(context.run.checkpoints.is_dir() and len(list(context.run.checkpoints.iterdir())) == 1)
        return {"val_loss": 1.0}

    made = replace(task(12), metrics=(Metric("loss"), Metric("val_loss")), evaluate=evaluate, loss=interrupted)
    with pytest.raises(Interrupted) if stopped else contextlib.nullcontext():
        train(made, OPTIM, TrainConfig(steps=6, eval_every=100, checkpoint_every=100), context)
    assert saved == [False, True]  # before the first step, and at the end


@pytest.mark.parametrize("long", [True, False])
def test_a_long_validation_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    context, lines = where(tmp_path)
    notes: list[str] = []
    monkeypatch.setattr(lines, "note", notes.append)
    monkeypatch.setattr(loop, "LONG_VALIDATION_SECONDS", -1.0 if long else 1e9)
    train(replace(validated({0: 2.0, 2: 1.0}), evaluation_tokens=1234), OPTIM, TrainConfig(steps=2), context)
    told = [note for note in notes if note.startswith("validation: 1,234 tokens, about ")]
    assert len(told) == (2 if long else 0)  # before the first step, and at the end


def free(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """What the disk has free, at each look; the last one stays."""
    left = list(sizes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, left.pop(0) if len(left) > 1 else left[0]))


def test_a_disk_too_small_for_the_run_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = where(tmp_path)
    free(monkeypatch, 5000)
    with pytest.raises(UserError) as caught:
        train(task(12), OPTIM, TrainConfig(steps=4), context)
    assert str(context.run.path) in caught.value.what
    assert "1.0 MB needed, 5.0 kB free" in caught.value.what and "--runs-dir" in caught.value.fix
    assert not context.run.metrics.exists()


def test_a_disk_that_fills_up_stops_the_run_which_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, lines = where(tmp_path)
    with monkeypatch.context() as patched:
        free(patched, 10**9, 10**9, 10**9, 10**9, 10**9, 7)
        with pytest.raises(Stopped) as caught:
            train(task(12), OPTIM, TrainConfig(steps=20, checkpoint_every=2, keep_checkpoints=3), context)
    assert caught.value.exit_code == 2
    assert f"in {context.run.path}: 1.0 MB needed, 7 bytes free" in caught.value.what
    assert "step-000004 is kept" in caught.value.what and "mmcli resume 1" in caught.value.fix
    assert any("to free space" in line for line in lines.warnings)
    assert kept(context.run) == ["step-000004"]
    again, _ = where(tmp_path, resume=True)
    made = task(12)
    assert train(made, OPTIM, TrainConfig(steps=20), again)["steps_done"] == 20


def failing(times: int) -> tuple[Task, list[int]]:
    """A task whose model cannot be written so many times."""
    left = [times]

    def save(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")

    return replace(task(12), save_model=save), left


def test_a_failed_save_is_tried_once_more(tmp_path: Path) -> None:
    context, lines = where(tmp_path)
    made, left = failing(1)
    train(made, OPTIM, TrainConfig(steps=4), context)
    assert left == [0] and (context.run.model / "config.json").is_file()
    assert any("trying once more" in line for line in lines.warnings)


def test_a_save_that_fails_twice_stops_the_run(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    made, _ = failing(2)
    with pytest.raises(Stopped) as caught:
        train(made, OPTIM, TrainConfig(steps=4), context)
    assert "cannot save step 4" in caught.value.what and "free" in caught.value.what


def test_metrics_that_cannot_be_written_do_not_stop_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, lines = where(tmp_path)

    class Full(journal.MetricsFile):
        def __init__(self, path: Path, *, from_step: int) -> None:
            super().__init__(path, from_step=from_step)
            self._file.close()
            self._file = open("/dev/full", "w")  # noqa: SIM115

    monkeypatch.setattr(journal, "MetricsFile", Full)
    assert train(task(12), OPTIM, TrainConfig(steps=4), context)["steps_done"] == 4
    assert [line for line in lines.warnings if "metrics.jsonl" in line] == [
        f"cannot write {context.run.metrics}: No space left on device"
    ]


def hungry(limit: int) -> Task:
    """A task that cannot hold more than `limit` rows of a micro-batch."""
    size = [12]

    def batches(step: int) -> Sequence[StepBatch]:
        made = task(size[0]).batches
        assert made is not None
        return made(step)

    def halve() -> int | None:
        size[0] //= 2
        return size[0] or None

    def needs_memory(model: Any, batch: Rows) -> LossOutput:
        if len(batch.x) > limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return loss(model, batch)

    return replace(task(12), batches=batches, loss=needs_memory, halve=halve)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = where(tmp_path)
    notes: list[str] = []
    monkeypatch.setattr(context.report, "note", notes.append)
    train(hungry(4), OPTIM, TrainConfig(steps=4), context)
    said = [note for note in notes if note.startswith("out of memory")]
    assert [note.split(" from")[0] for note in said] == [
        "out of memory: --micro-batch 6",
        "out of memory: --micro-batch 3",
    ]
    whole, _ = where(tmp_path / "whole")
    train(task(12), OPTIM, TrainConfig(steps=4), whole)
    for one, two in zip(metrics(context.run), metrics(whole.run), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_out_of_memory_with_a_single_row_says_so(tmp_path: Path) -> None:
    context, _ = where(tmp_path)
    with pytest.raises(MmcliError) as caught:
        train(hungry(0), OPTIM, TrainConfig(steps=4), context)
    assert "out of memory" in caught.value.what and "--seq-len" in caught.value.fix


def test_a_halved_micro_batch_is_kept_on_resume(tmp_path: Path) -> None:

    context, _ = where(tmp_path)
    for train_config in (TrainConfig(batch_size=8, micro_batch=4), TrainConfig(batch_size=8)):
        arguments = (train_config, ModelConfig(), 128, choose_accelerator("cpu", "fp32"), context)
        micro_batch = choose_micro_batch(*arguments)
        half = micro_batch.size // 2
        assert micro_batch.halve() == half and choose_micro_batch(*arguments).size == half
        assert context.run.read_config("resolved.toml")["micro_batch"] == half
        micro_batch.size = 1
        assert micro_batch.halve() is None
