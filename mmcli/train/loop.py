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
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from mmcli.errors import Interrupted
from mmcli.run import RESOLVED
from mmcli.stage import StageContext
from mmcli.train.checkpoint import Progress, checkpoint_step, list_checkpoints, load_newest, load_step
from mmcli.train.config import OptimConfig, TrainConfig, duration
from mmcli.train.device import keep_freed_memory, measure_peak_flops
from mmcli.train.feed import Feed
from mmcli.train.finite import Diverged, non_finite, too_many_skipped
from mmcli.train.metrics import MetricsFile
from mmcli.train.optim import build_optimizer, undone
from mmcli.train.plan import Plan, make_plan
from mmcli.train.saving import Saver, lower_rate
from mmcli.train.shard import is_sharded, release, shard
from mmcli.train.signals import StopSignals
from mmcli.train.task import Task
from mmcli.train.updates import StepResult, Updates

T = TypeVar("T")
LONG_VALIDATION_SECONDS = 3.0  # one that takes longer is announced


def train(task: Task, optim: OptimConfig, config: TrainConfig, context: StageContext) -> dict[str, Any]:
    """Train `task` to its end, to the end of its budget, or until a signal; the totals of the run.

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
        self.task, self.config = task, config
        self.context, self.report, self.run_folder = context, context.report, context.run
        self.model = task.model
        self.ranks = context.ranks
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
        self.progress = Progress()
        self.last: dict[str, Any] = {}
        self.held_out: dict[str, Any] = {}  # of the weights as they are; empty where that was not measured
        self.step_seconds: list[float] = []  # of the newest steps
        self.step_tokens: list[int] = []
        self.skipped: list[int] = []  # the newest steps, each skipped, up to now
        self.wrong = ""  # what happened at the first of them
        self.updated = False  # since the start, or the checkpoint that was loaded
        self.signal: int | None = None  # that any rank has got, as all know it

    def run(self) -> dict[str, Any]:
        keep_freed_memory()
        self.context.tell_prepared()
        if self.context.resume:
            self._load()
        if self.ranks.is_writer:
            self.saver.check_room(resume=self.context.resume)
        self.run_folder.update(metrics=[dataclasses.asdict(metric) for metric in self.task.metrics])
        with self.feed:
            self.peak_flops = sum(self.ranks.gather(measure_peak_flops(self.task.accelerator)))
            plan = make_plan(self.task, self.config, self.context, self._probe)
            self.updates.forward = torch.compile(self.model, dynamic=False) if plan.compile else self.model
            with StopSignals(tells=self.ranks.is_writer) as stop:
                while True:
                    path = self.run_folder.metrics if self.ranks.is_writer else None
                    self.metrics = MetricsFile(path, from_step=self.progress.step)
                    try:
                        with contextlib.closing(self.metrics):
                            return self._loop(plan, stop)
                    except Diverged:
                        if not self._fall_back():
                            raise

    # Checkpoints

    def _load(self) -> None:
        """The latest valid checkpoint whose numbers are finite; rank 0 finds it for all."""
        folder = self.run_folder.checkpoints
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

    def _probe(self) -> tuple[float, int]:
        """(seconds, tokens) of a step: its rollouts, a micro-batch's forward and backward scaled up, and the update.

        The update is measured and undone. All ranks measure at once: the slowest counts, with the tokens of all.
        """
        measured = self.ranks.gather(self.updates.fitting(self._measure))
        return max(seconds for seconds, _ in measured), sum(tokens for _, tokens in measured)

    def _measure(self) -> tuple[float, int]:
        started = time.perf_counter()
        batches = [*self.feed.batches(self.progress.step).values()]
        rollout_seconds = time.perf_counter() - started if self.task.rollouts is not None else 0.0
        tokens, seconds = sum(batch.tokens for batch in batches), rollout_seconds
        if batches:  # a rank may have none
            backward_seconds = self._time(lambda: self.updates.backward(self.model, batches[0], batches[0].counts))
            seconds += backward_seconds * tokens / max(1, batches[0].tokens)
        self.updates.sum_gradients()
        with undone(self.optimizer):
            seconds += self._time(lambda: (self.updates.clip(), self.optimizer.step()))
        self.optimizer.zero_grad(set_to_none=True)
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

    def _loop(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        started = last_save = time.perf_counter()
        first_save = True

        def decide() -> tuple[bool, bool]:
            """(the budget is spent, a checkpoint is due) by the clock of rank 0; a signal that any rank got."""
            now = time.perf_counter()
            spent = plan.budget_seconds is not None and now - started > plan.budget_seconds
            due = plan.checkpoint_due(self.progress.step, now - last_save, first_save)
            found = self.ranks.gather((stop.received, spent, due))
            self.signal = next((number for number, _, _ in found if number is not None), None)
            return found[0][1], found[0][2]

        spent, _ = decide()
        while self.progress.step < plan.steps and self.signal is None and not spent:
            now = time.perf_counter()
            if self._validate(plan, stop):
                decide()
                if self.signal is not None:
                    break
            values = {**self.held_out, **self._step(plan)}
            self.held_out = {}
            self._by_writer(lambda: self._sample(plan), stop)
            self._log(values, plan)
            self.progress.elapsed_seconds += time.perf_counter() - now
            spent, due = decide()
            if self.skipped or self.progress.step >= plan.steps or self.signal is not None:
                continue  # the end saves; a step that was skipped says nothing for the weights
            if due:
                self._validate(plan, stop)
                self._save()
                last_save, first_save = time.perf_counter(), False
                spent, _ = decide()
        return self._finish(plan, stop)

    def _step(self, plan: Plan) -> dict[str, Any]:
        """One optimizer step; the values logged of it, under the number of updates done before it.

        Raises:
            Diverged: too many steps were skipped.
        """
        started = time.perf_counter()
        step = self.progress.step
        result = self.updates.step(step, plan.steps)
        self.progress.step += 1
        self.progress.tokens += result.tokens
        self.step_seconds = [*self.step_seconds, time.perf_counter() - started][-20:]
        self.step_tokens = [*self.step_tokens, result.tokens][-20:]
        values = {"step": step, "tokens": self.progress.tokens, **result.means}
        values |= {"lr": result.rate, "grad_norm": result.norm}
        if result.wrong is None:
            self.skipped, self.updated = [], True
            return values
        self._skip(step, result, plan)
        return {**values, "skipped": True}

    def _skip(self, step: int, result: StepResult, plan: Plan) -> None:
        """Count and name a step that left the weights as they were."""
        self.skipped.append(step)
        self.progress.skipped += 1
        self.run_folder.update(steps_skipped=self.progress.skipped)
        what = f"step {step} skipped: the {result.wrong} became NaN or infinite"
        if self.task.describe is not None:
            what += f" ({self.task.describe(step, result.where)})"
        self.report.warn(what)
        if self.skipped == [step]:
            self.wrong = f"the {result.wrong} became NaN or infinite at step {step} (learning rate {result.rate:.2g})"
        if too_many_skipped(len(self.skipped), self.progress.skipped, plan.steps):
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
        first = next((m.name for m in self.task.metrics if m.held_out and m.name in self.held_out), None)
        if first is not None and math.isfinite(self.held_out[first]):
            self.progress.held_out = float(self.held_out[first])

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

    def _log(self, values: dict[str, Any], plan: Plan) -> None:
        rate = sum(self.step_tokens) / sum(self.step_seconds)
        values["tokens_per_second"] = round(rate, 1)
        values["mfu"] = round(rate * self.task.flops_per_token / self.peak_flops, 4)
        values["elapsed_seconds"] = round(self.progress.elapsed_seconds, 3)
        self._write(values)
        left = (plan.steps - self.progress.step) * sum(self.step_seconds) / len(self.step_seconds)
        where = {"step": self.progress.step, "steps": plan.steps, "eta_seconds": left}
        self.report.step({**values, **where}, self.task.metrics)

    def _write(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl. A full disk does not stop the training; it is met again by the next save."""
        self.last |= values
        problem = self.metrics.write(values)
        if problem is not None:
            self.report.warn(f"cannot write {self.run_folder.metrics}: {problem}")

    # The end

    def _finish(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        """Save, then validate, then report.

        Raises:
            Diverged: the last step was skipped, or the held-out loss is not finite.
            Interrupted: a signal came.
        """
        step, steps = self.progress.step, plan.steps
        if self.skipped and step == steps:
            raise self._diverged()
        started = time.perf_counter()
        self._save()
        if not self.held_out and (self.signal is None or plan.evaluation_seconds <= LONG_VALIDATION_SECONDS):
            self._announce(plan)
            self._evaluate(stop)
        values = self.held_out
        if values:
            self._write({"step": step, "tokens": self.progress.tokens, **values})
        self.progress.elapsed_seconds += time.perf_counter() - started
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
            raise Interrupted(what, f"resume it: mmcli resume {self.run_folder.number}", self.signal)
        if bad:
            raise Diverged(
                f"non-finite loss: {bad[0]} is {values[bad[0]]} after step {step}", lower_rate(self.run_folder)
            )
        if step < steps:
            self.report.note(f"the budget of {self.config.budget} ended after step {step} of {steps}")
            return {**totals, "state": "stopped", "reason": "end of the budget"}
        held_out = [metric for metric in self.task.metrics if metric.held_out and metric.name in values]
        if held_out:
            shown = (f"{metric.title} {metric.number(values[metric.name])}" for metric in held_out)
            self.report.note("held-out: " + "  ".join(shown))
        return totals
