"""The plan of a training: steps, compilation, evaluation and checkpoint intervals. Chosen once, kept on resume."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmcli.run import RESOLVED, Run
from mmcli.stage import Reporter, StageContext
from mmcli.train.config import TrainConfig, duration
from mmcli.train.device import can_compile, describe_device
from mmcli.train.schedule import Horizon
from mmcli.train.task import Task

COMPILE_PAYS_SECONDS = 900.0  # an eager training shorter than this ends before compiling has paid
FIRST_CHECKPOINT_SECONDS = 90.0
CHECKPOINT_SECONDS = 300.0
LONG_SECONDS = 2 * 3600.0
FITS = "fits"  # in resolved.toml: [step, steps] of each later fit
DISK_BYTES_PER_SECOND = 2e8  # written, flushed and hashed


@dataclass(frozen=True)
class Plan:
    """Steps, compilation and intervals of one training; intervals are in steps, the budget in seconds."""

    steps: int
    compile: bool
    eval_every: int
    sample_every: int
    checkpoint_every: int | None
    budget_seconds: float | None
    evaluation_seconds: float = 0.0  # of one, as far as that is known before the first
    other_seconds: float = 0.0  # of all evaluations and checkpoints
    most_steps: int | None = None  # that may be fitted into the budget; None: any number

    def checkpoint_due(self, step: int, waited_seconds: float, first: bool) -> bool:
        """True after `step` updates if a checkpoint is due; the newest is `waited_seconds` old."""
        if self.checkpoint_every is not None:
            return step % self.checkpoint_every == 0
        return waited_seconds > (FIRST_CHECKPOINT_SECONDS if first else CHECKPOINT_SECONDS)


def make_plan(
    task: Task, config: TrainConfig, context: StageContext, probe: Callable[[bool], tuple[float, int]]
) -> Plan:
    """The plan of a training, reported in one line; `probe` measures (seconds, tokens) of a step, compiled or not."""
    report, choose = context.report, functools.partial(context.ranks.choose, context.run)
    measured = choose("measured", lambda: dict(zip(("step_seconds", "step_tokens"), probe(False), strict=True)))
    step_seconds, step_tokens = float(measured["step_seconds"]), int(measured["step_tokens"])
    most = _most_steps(task, config)
    steps = int(choose("steps", lambda: _choose_steps(task, config, most, step_seconds)))
    seconds = steps * step_seconds
    compiled = bool(choose("compile", lambda: _choose_compile(task, config, steps, step_seconds, probe, report)))
    eval_every = int(choose("eval_every", lambda: _choose_eval_every(task, config, steps, step_tokens)))
    _compare_machine(task, context)
    epochs = steps / task.steps_per_epoch
    evaluation_seconds = _evaluation_seconds(task, step_seconds, step_tokens)
    other_seconds = evaluation_seconds * (math.ceil(steps / eval_every) + 1)
    other_seconds += _saving_seconds(task, config, steps, seconds, eval_every)
    seconds += other_seconds
    about = f"about {duration(max(1.0, seconds))}" + (", compiled" if compiled else "")
    report.note(f"{steps:,} steps ({epochs:.2g} epochs), {about}")
    if seconds > LONG_SECONDS and config.budget is None:
        report.note("to train for a fixed time: --budget 20m")
    return Plan(
        steps=steps,
        compile=compiled,
        eval_every=eval_every,
        sample_every=config.sample_every or max(1, math.ceil(steps / 4)),
        checkpoint_every=config.checkpoint_every,
        budget_seconds=config.budget_seconds,
        evaluation_seconds=evaluation_seconds,
        other_seconds=other_seconds,
        most_steps=most,
    )


def read_horizon(run: Run, steps: int) -> Horizon:
    """`steps`, and what a budget has made of them since."""
    return Horizon(
        ((0, steps), *((int(step), int(fitted)) for step, fitted in run.read_config(RESOLVED).get(FITS, [])))
    )


def record_fit(run: Run, horizon: Horizon, step: int, steps: int) -> Horizon:
    """The horizon with one more fit, which the run keeps."""
    fits = (*horizon.fits, (step, steps))
    run.record_choice(FITS, [list(fit) for fit in fits[1:]])
    return Horizon(fits)


def _most_steps(task: Task, config: TrainConfig) -> int | None:
    """The steps at which the training ends, whatever fits into a budget: `steps`, or those of `epochs`; else None."""
    if config.steps is not None:
        return config.steps
    if config.epochs is None and config.budget_seconds is not None:
        return None
    return max(1, math.ceil(config.passes * task.steps_per_epoch))


def _choose_steps(task: Task, config: TrainConfig, most: int | None, step_seconds: float) -> int:
    if config.budget_seconds is None:
        assert most is not None
        return most
    # A twentieth of the budget is left for evaluation and checkpoints.
    fitting = max(1, int((0.95 * config.budget_seconds - task.prepared_seconds) / step_seconds))
    return fitting if most is None else min(fitting, most)


def _choose_eval_every(task: Task, config: TrainConfig, steps: int, step_tokens: int) -> int:
    """Ten evaluations in all, fewer where they would take more than a tenth of the time (a forward pass is a third)."""
    if config.eval_every is not None:
        return config.eval_every
    fitting = 0.1 * steps * step_tokens / max(1.0, task.evaluation_tokens / 3.0)
    return max(1, math.ceil(steps / max(1.0, min(10.0, fitting))))


def _evaluation_seconds(task: Task, step_seconds: float, step_tokens: int) -> float:
    """Of one evaluation: a forward pass takes a third of a step's time for as many tokens."""
    return step_seconds * task.evaluation_tokens / max(1, step_tokens) / 3.0 if task.evaluate is not None else 0.0


def _saving_seconds(task: Task, config: TrainConfig, steps: int, seconds: float, eval_every: int) -> float:
    """Of all checkpoints of a training whose steps take `seconds`: weights, two moments, and the model; and of the best
    model, which may be another at each evaluation."""
    count = steps // config.checkpoint_every if config.checkpoint_every else int(seconds / CHECKPOINT_SECONDS)
    total = sum(p.numel() * p.element_size() for p in task.model.parameters())
    bests = steps // eval_every if config.keep_best and task.evaluate is not None else 0
    return (4 * (count + 1) + bests) * total / DISK_BYTES_PER_SECOND


def _choose_compile(
    task: Task,
    config: TrainConfig,
    steps: int,
    step_seconds: float,
    probe: Callable[[bool], tuple[float, int]],
    report: Reporter,
) -> bool:
    """As asked; else, where the training is long enough to make up for compiling, whichever step is quicker."""
    if config.compile != "auto":
        return config.compile == "on"
    if steps * step_seconds <= COMPILE_PAYS_SECONDS:
        return False
    if not can_compile(task.accelerator.device):
        report.note("not compiled: torch.compile needs a C++ compiler (g++ or clang++) on the CPU, Triton on CUDA")
        return False
    report.note("compiling the model to compare the time of a step; this takes a minute or more")
    times = probe(True)[0] / step_seconds
    report.note(f"a compiled step takes {times:.2f} times as long as an eager one" + ("" if times < 1 else ": eager"))
    return times < 1.0


def _compare_machine(task: Task, context: StageContext) -> None:
    """Warn where the machine has changed and a resumed run cannot be bit-exact."""
    now = {
        "ranks": str(context.ranks.world),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "precision": task.accelerator.precision,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": describe_device(task.accelerator.device),
    }
    for key, value in now.items():
        before = context.ranks.choose(context.run, key, functools.partial(str, value))
        if before != value:
            context.report.warn(f"resumes, not bit-exactly: {key.replace('_', ' ')} {before} -> {value}")
