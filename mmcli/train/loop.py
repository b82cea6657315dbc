"""The one training loop. A stage gives it a `Task` (see `mmcli.train.task`): a model, the batches of each step, a loss.

Resume, devices, schedules, clipping, logging, checkpoints, budgets and signals are the loop's. Batches are a pure
function of the step, and so is the randomness of dropout: a resumed run needs weights, moments and a step number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from mmcli.errors import Interrupted, MmcliError
from mmcli.run import RESOLVED
from mmcli.stage import Metric, StageContext, Trial
from mmcli.train.checkpoint import Progress, checkpoint_step, list_checkpoints, load_newest, load_step
from mmcli.train.config import OptimConfig, TrainConfig, duration
from mmcli.train.device import describe_device, keep_freed_memory, measure_peak_flops
from mmcli.train.feed import Feed
from mmcli.train.finite import Diverged, non_finite, too_many_skipped
from mmcli.train.journal import Journal
from mmcli.train.memory import peak_memory
from mmcli.train.optim import build_optimizer, undone
from mmcli.train.pace import Pace
from mmcli.train.plan import Plan, make_plan, read_horizon, record_fit
from mmcli.train.saving import Saver, lower_rate
from mmcli.train.schedule import Horizon
from mmcli.train.shard import is_sharded, release, shard
from mmcli.train.signals import StopSignals
from mmcli.train.task import Task
from mmcli.train.updates import StepResult, Updates

TRIAL_SECONDS = 20.0  # steps of a trial that take longer in all are enough with two
T = TypeVar("T")
LONG_VALIDATION_SECONDS = 3.0  # one that takes longer is announced


def train(task: Task, optim: OptimConfig, config: TrainConfig, context: StageContext) -> dict[str, Any]:
    """Train `task` to its end, to the end of its budget, or until a signal; the totals of the run.

    In a trial (`StageContext.trial`) only a few steps are done, and the totals are what they and the rest would take.

    Raises:
        UserError: the disk has no room for what the run will keep.
        Interrupted: a signal came; everything is saved.
        Stopped: the disk is full; the last checkpoint is kept.
        Diverged: the loss, the gradient or the weights became NaN or infinite; the last checkpoint is from before.
        MmcliError: a step has no batch, or does not fit into memory.
    """
    return _Training(task, optim, config, context).run()


class _Training:
    def __init__(self, task: Task, optim: OptimConfig, config: TrainConfig, context: StageContext) -> None:
        if (trial := context.trial) is not None:
            task = dataclasses.replace(task, steps_per_epoch=task.steps_per_epoch / trial.share)
            config = dataclasses.replace(config, compile="off" if config.compile == "auto" else config.compile)
        self.task, self.config = task, config
        self.context, self.report, self.run_folder = context, context.report, context.run
        self.model = task.model
        self.ranks = context.ranks
        context.tell_prepared()
        self.ranks.copy_weights(self.model.parameters())
        if context.run.read_config(RESOLVED).get("shard", config.shard):
            shard(self.model, task.accelerator.device)
        dtype = torch.bfloat16 if task.accelerator.precision == "bf16" else torch.float32
        self.optimizer = build_optimizer(self.model, optim, dtype=dtype)
        self.feed = Feed(task, config.seed, self.ranks)
        scale = float(context.run.read_config(RESOLVED).get("lr_scale", 1.0))
        self.updates = Updates(
            task,
            optim,
            self.optimizer,
            self.feed,
            self.report,
            seed=config.seed,
            rate_scale=scale,
            ranks=self.ranks,
        )
        self.saver = Saver(context.run, task, self.optimizer, config, self.report, self.ranks)
        self.compiled: Any = None  # the compiled form of the model, once it was asked for
        self.progress = Progress(elapsed_seconds=task.prepared_seconds)
        self.last: dict[str, Any] = {}
        self.held_out: dict[str, Any] = {}  # of the weights as they are; empty where that was not measured
        self.step_seconds: list[float] = []  # of the newest steps
        self.step_tokens: list[int] = []
        self.pace, self.busy = Pace(), ""
        self.skipped: list[int] = []  # the newest steps, each skipped, up to now
        self.wrong = ""  # what happened at the first of them
        self.updated = False  # since the start, or the checkpoint that was loaded
        self.signal: int | None = None  # that any rank has got, as all know it

    def run(self) -> dict[str, Any]:
        keep_freed_memory()
        if self.context.resume:
            self._load()
        if self.ranks.is_writer:
            self.saver.check_room(resume=self.context.resume)
        self.run_folder.update(metrics=[dataclasses.asdict(metric) for metric in self.task.metrics])
        with self.feed:
            self.peak_flops = sum(self.ranks.gather(measure_peak_flops(self.task.accelerator)))
            plan = make_plan(self.task, self.config, self.context, self._probe)
            self._use(compiled=plan.compile)
            if self.task.planned is not None:
                self.task.planned(plan.steps)
                self.feed.forget()
            if (trial := self.context.trial) is not None:
                return self._try(plan, trial)
            with StopSignals(self.report.note if self.ranks.is_writer else None) as stop:
                while True:
                    self._start_clock(plan)
                    step, loggers = self.progress.step, self.config.loggers
                    self.journal = Journal(self.context, from_step=step, loggers=loggers)
                    try:
                        with contextlib.closing(self.journal):
                            return self._loop(plan, stop)
                    except Diverged:
                        if not self._fall_back():
                            raise

    # Checkpoints

    def _load(self) -> None:
        """The latest valid checkpoint whose numbers are finite; rank 0 finds it for all."""
        folder = self.run_folder.checkpoints
        self.saver.saved_at, self.held_out = None, {}  # of weights that are given up, after a fall back
        while True:
            self.optimizer.state.clear()
            found = load_newest(folder, self.model, self.optimizer, self.report) if self.ranks.is_writer else None
            step = self.ranks.broadcast(found.step if found is not None else None)
            if step is None:
                self.report.note("no checkpoint yet: starting from the first step")
                return
            found = found or load_step(folder, step, self.model, self.optimizer)
            names = self.ranks.gather(non_finite(self.model, self.optimizer))
            name = next((each for each in names if each is not None), None)
            if name is None:
                break
            if self.ranks.is_writer:
                self._drop(found, f"has a value that is NaN or infinite ({name})")
        self.progress, self.updated, self.skipped = found, False, []
        self.report.note(f"resumed at step {found.step}")

    def _drop(self, found: Progress, why: str) -> None:
        """Remove a checkpoint that is whole and bad, so that the one before it is used.

        Raises:
            Diverged: there is none before it.
        """
        paths = list_checkpoints(self.run_folder.checkpoints)
        bad = next(path for path in paths if checkpoint_step(path) == found.step)
        if paths[0] == bad:
            raise Diverged(f"{bad}, the only checkpoint, {why}", "start the run again with a lower --lr")
        self.report.warn(f"{bad} {why}; going back to the one before it")
        shutil.rmtree(bad)

    def _fall_back(self) -> bool:
        """Go back to the checkpoint before the one that was loaded, if no step from that one was finite."""
        paths = list_checkpoints(self.run_folder.checkpoints)
        if self.updated or not self.context.resume or self.ranks.broadcast(len(paths)) < 2:
            return False
        if self.ranks.is_writer:
            self._drop(Progress(step=checkpoint_step(paths[-1])), "leads to no finite loss")
        self._load()
        return True

    def _save(self) -> None:
        """A checkpoint and the model; after a step without a finite loss, with what is older kept."""
        self.saver.save(self.progress, prune=not self.skipped)

    # Steps

    def _use(self, *, compiled: bool) -> None:
        """Let forward passes go through the model, or its compiled form, of which there is one."""
        if compiled and self.compiled is None:
            self.compiled = torch.compile(self.model, dynamic=False)
        self.updates.forward = self.compiled if compiled else self.model

    def _probe(self, compiled: bool) -> tuple[float, int]:
        """(seconds, tokens) of a step: its rollouts, a micro-batch's forward and backward scaled up, and the update.

        The update is measured and undone. All ranks measure at once: the slowest counts, with the tokens of all.
        """
        self._use(compiled=compiled)
        measured = self.ranks.gather(self.updates.fitting(self._measure))
        return max(seconds for seconds, _ in measured), sum(tokens for _, tokens in measured)

    def _measure(self) -> tuple[float, int]:
        started = time.perf_counter()
        batches = [*self.feed.batches(self.progress.step).values()]
        rollout_seconds = time.perf_counter() - started if self.task.rollouts is not None else 0.0
        tokens, seconds = sum(batch.tokens for batch in batches), rollout_seconds
        if batches:  # a rank may have none
            backward_seconds = self._time(
                lambda: self.updates.backward(self.updates.forward, batches[0], batches[0].counts)
            )
            seconds += backward_seconds * tokens / max(1, batches[0].tokens)
        self.updates.sum_gradients()
        with undone(self.optimizer):
            seconds += self._time(lambda: (self.updates.clip(), self.optimizer.step()))
        self.updates.clear_gradients()
        return seconds, tokens

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of `work`, the best of two after one to warm up."""
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            self.updates.wait()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def _try(self, plan: Plan, trial: Trial) -> dict[str, Any]:
        """What a few steps of the plan take, and what the whole of it would."""
        seconds, tokens, horizon = [], 0, Horizon(((0, plan.steps),))
        for step in range(min(trial.steps + 1, max(2, plan.steps))):
            started = time.perf_counter()
            tokens += self.updates.step(step, horizon).tokens
            seconds.append(time.perf_counter() - started)
            if step and sum(seconds) > TRIAL_SECONDS:
                break
        return {
            "steps": plan.steps,
            "steps_per_epoch": self.task.steps_per_epoch,
            "step_seconds": statistics.median(seconds[1:]),
            "step_tokens": tokens // len(seconds),
            "other_seconds": plan.other_seconds,
            "peak_memory_bytes": peak_memory(self.task.accelerator.device),
            "halved": self.updates.halved,
            "disk_bytes": self.saver.kept_bytes,
            "disk_free_bytes": shutil.disk_usage(self.run_folder.path).free,
            "device": describe_device(self.task.accelerator.device),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def _loop(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        last_save, first_save = time.perf_counter(), True

        def decide() -> bool:
            """Whether a checkpoint is due, by the clock of rank 0, which fits the steps too; a signal of any rank."""
            due = plan.checkpoint_due(self.progress.step, time.perf_counter() - last_save, first_save)
            found = self.ranks.gather((stop.received, self._fitting(plan), due))
            self.signal = next((number for number, _, _ in found if number is not None), None)
            self._fit(found[0][1])
            return found[0][2]

        decide()
        while self.progress.step < self.horizon.steps and self.signal is None:
            if self._validate(plan, stop):
                decide()
                if self.signal is not None:
                    break
            values = {**self.held_out, **self._step()}
            self.held_out = {}
            self._by_writer(lambda: self._sample(plan), stop)
            self._log(values)
            self.progress.elapsed_seconds = time.perf_counter() - self.clock
            due = decide()
            if self.skipped or self.progress.step >= self.horizon.steps or self.signal is not None:
                continue  # the end saves; a step that was skipped says nothing for the weights
            if due:
                self._validate(plan, stop)
                self._save()
                last_save, first_save = time.perf_counter(), False
                decide()
        return self._finish(plan, stop)

    def _start_clock(self, plan: Plan) -> None:
        self.clock = time.perf_counter() - self.progress.elapsed_seconds
        self.horizon = read_horizon(self.run_folder, plan.steps)
        self.fitted = (self.progress.step, self.progress.elapsed_seconds)  # when the horizon was looked at last

    def _fitting(self, plan: Plan) -> int | None:
        """The steps that fit into the budget, each time that half of what was left of it, or of the steps, has passed;
        else None.
        """
        if plan.budget_seconds is None:
            return None
        step, elapsed = self.progress.step, self.progress.elapsed_seconds
        (at, then), left = self.fitted, plan.budget_seconds - elapsed
        halfway = left <= 0.5 * (plan.budget_seconds - then) or 2 * step >= at + self.horizon.steps
        if not halfway or step <= max(at, self.horizon.fitted_at):
            return None
        fitting = (left - plan.evaluation_seconds) * (step - at) / (elapsed - then)
        steps = step + max(1, int(fitting))
        return steps if plan.most_steps is None else min(steps, max(step, plan.most_steps))

    def _fit(self, steps: int | None) -> None:
        """Let the training have `steps` steps from now on, as `_fitting` found.

        That is recorded before it is used, so that a resumed run goes by the same.
        """
        if steps is None:
            return
        step = self.progress.step
        self.fitted = (step, self.progress.elapsed_seconds)
        if steps != self.horizon.steps and step < self.horizon.steps:
            self.horizon = record_fit(self.run_folder, self.horizon, step, steps)

    def _step(self) -> dict[str, Any]:
        """One optimizer step; the values logged of it, under the number of updates done before it.

        Raises:
            Diverged: too many steps were skipped.
        """
        started = time.perf_counter()
        step = self.progress.step
        result = self.updates.step(step, self.horizon)
        self.progress.step += 1
        self.progress.tokens += result.tokens
        self.step_seconds = [*self.step_seconds, time.perf_counter() - started][-20:]
        self.busy = self.pace.add(self.step_seconds[-1], result.tokens)
        self.step_tokens = [*self.step_tokens, result.tokens][-20:]
        values = {"step": step, "tokens": self.progress.tokens, **result.means}
        values |= {"lr": result.rate, "grad_norm": result.norm}
        if result.wrong is None:
            self.skipped, self.updated = [], True
            return values
        self._skip(step, result)
        return {**values, "skipped": True}

    def _skip(self, step: int, result: StepResult) -> None:
        """Count and name a step that left the weights as they were."""
        self.skipped.append(step)
        self.progress.skipped += 1
        with contextlib.suppress(OSError, MmcliError):  # a full disk is met again by the next save
            self.run_folder.update(steps_skipped=self.progress.skipped)
        what = f"step {step} skipped: the {result.wrong} became NaN or infinite"
        if self.task.describe is not None:
            what += f" ({self.task.describe(step, result.where)})"
        self.report.warn(what)
        if self.skipped == [step]:
            self.wrong = f"the {result.wrong} became NaN or infinite at step {step} (learning rate {result.rate:.2g})"
        if too_many_skipped(len(self.skipped), self.progress.skipped, self.horizon.steps):
            raise self._diverged()

    def _diverged(self) -> Diverged:
        count = f"; {self.progress.skipped} steps were skipped" if self.progress.skipped > 1 else ""
        return Diverged(f"non-finite loss: {self.wrong}{count}", lower_rate(self.run_folder))

    # Validation, samples, metrics

    def _validate(self, plan: Plan, stop: StopSignals) -> bool:
        """Measure the held-out data where that is due, and not done for these weights; True if it was."""
        due = self.progress.step % plan.eval_every == 0 and not self.held_out and self.task.evaluate is not None
        if due:
            if self.progress.step == 0:
                self._announce(plan)
            self._evaluate(stop)
        return due

    def _announce(self, plan: Plan) -> None:
        if self.task.evaluate is not None and plan.evaluation_seconds > LONG_VALIDATION_SECONDS:
            tokens, seconds = self.task.evaluation_tokens, plan.evaluation_seconds
            self.report.note(f"validation: {tokens:,} tokens, about {duration(seconds)}")

    def _evaluate(self, stop: StopSignals) -> None:
        """Fill `held_out`, by rank 0 for all; a signal leaves it empty."""
        if self.task.evaluate is None:
            return
        values = self._by_writer(self._held_out_values, stop)
        self.held_out = self.ranks.broadcast(values or {})
        if (first := self._first_held_out()) is not None:
            ended = self.progress.step >= self.horizon.steps
            self.saver.keep_best(self.progress.step, first, float(self.held_out[first.name]), ended=ended)

    def _first_held_out(self) -> Metric | None:
        """The held-out metric that says which model is the best."""
        return next((m for m in self.task.metrics if m.held_out and m.name in self.held_out), None)

    def _by_writer(self, work: Callable[[], T], stop: StopSignals) -> T | None:
        """What `work`, which changes nothing, returns on rank 0; None on the others, or where a signal ends it.

        Where weights are split, all ranks take part in every pass, whatever comes.
        """
        if is_sharded(self.model):
            value = work()
            release(self.model)
            return value
        return stop.interruptible(work) if self.ranks.is_writer else None

    def _held_out_values(self) -> dict[str, Any]:
        assert self.task.evaluate is not None
        self.model.eval()
        with torch.no_grad(), self.task.accelerator.autocast():
            return dict(self.task.evaluate(self.model))

    def _sample(self, plan: Plan) -> None:
        if self.task.sample is None or self.progress.step % plan.sample_every:
            return
        self.model.eval()
        for prompt, text in self.task.sample(self.model, self.progress.step):
            self.report.sample(prompt, text)
            self.journal.sample(self.progress.step, prompt, text)

    def _log(self, values: dict[str, Any]) -> None:
        rate = sum(self.step_tokens) / sum(self.step_seconds)
        values["tokens_per_second"] = round(rate, 1)
        values["mfu"] = round(rate * self.task.flops_per_token / self.peak_flops, 4)
        values["elapsed_seconds"] = round(self.progress.elapsed_seconds, 3)
        self._write(values)
        steps = self.horizon.steps
        left = (steps - self.progress.step) * sum(self.step_seconds) / len(self.step_seconds)
        where = {"step": self.progress.step, "steps": steps, "eta_seconds": left, "busy": self.busy}
        self.report.step({**values, **where}, self.task.metrics)

    def _write(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl. A full disk does not stop the training; it is met again by the next save."""
        self.last |= values
        problem = self.journal.write(values)
        if problem is not None:
            self.report.warn(f"cannot write {self.run_folder.metrics}: {problem}")

    # The end

    def _finish(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        """Save, then validate, then report.

        Raises:
            Diverged: the last step was skipped, or the held-out loss is not finite.
            Interrupted: a signal came.
        """
        step, steps = self.progress.step, self.horizon.steps
        if self.skipped and step == steps:
            raise self._diverged()
        self._save()
        if not self.held_out and (self.signal is None or plan.evaluation_seconds <= LONG_VALIDATION_SECONDS):
            self._announce(plan)
            self._evaluate(stop)
        values = self.held_out
        if values:
            self._write({"step": step, "tokens": self.progress.tokens, **values})
        self.progress.elapsed_seconds = time.perf_counter() - self.clock
        headline = self.task.metrics[0].name
        totals = {
            "steps_done": step,
            "steps": steps,
            "tokens": self.progress.tokens,
            "elapsed_seconds": round(self.progress.elapsed_seconds, 1),
            **{key: self.last[key] for key in (headline, *values) if key in self.last},
        }
        bad = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        self.run_folder.update(**{key: value for key, value in totals.items() if key not in bad})
        if self.signal is not None and step < steps:
            name = signal.Signals(self.signal).name
            what = f"stopped by {name} after step {step} of {steps}; everything is saved in {self.run_folder.path}"
            raise Interrupted(what, f"resume it: mmcli resume {self.run_folder.reference}", self.signal)
        if bad:
            raise Diverged(
                f"non-finite loss: {bad[0]} is {values[bad[0]]} after step {step}", lower_rate(self.run_folder)
            )
        held_out = [metric for metric in self.task.metrics if metric.held_out and metric.name in values]
        if held_out:
            shown = (f"{metric.title} {metric.number(values[metric.name])}" for metric in held_out)
            self.report.note("held-out: " + "  ".join(shown))
        self._tell_best()
        return totals

    def _tell_best(self) -> None:
        """Say where the model with the best held-out value is, if it is not the one that the training ended with."""
        first, best, folder = self._first_held_out(), self.saver.best, self.run_folder.best
        if first is None or best is None or first.name not in best or not folder.is_dir():
            return
        now, then = (first.number(values[first.name]) for values in (self.held_out, best))
        if now != then:
            self.report.note(
                f"held-out {first.title} was best after step {best['step']:,} ({then}); that model: {folder}"
            )
