"""The one training loop. A stage gives it a `Task` (see `mmcli.train.task`): a model, the batches of each step, a loss.

Resume, devices, schedules, clipping, logging, checkpoints, budgets and signals are the loop's. Batches are a pure
function of the step, and so is the randomness of dropout: a resumed run needs weights, moments and a step number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcli.errors import Interrupted, MmcliError
from mmcli.files import atomic_folder
from mmcli.stage import StageContext, Term
from mmcli.train.checkpoint import Progress, load_newest, save_checkpoint
from mmcli.train.config import OptimConfig, TrainConfig
from mmcli.train.device import keep_freed_memory, measure_peak_flops, seed_step
from mmcli.train.feed import Feed
from mmcli.train.metrics import MetricsFile
from mmcli.train.optim import build_optimizer, set_learning_rate, undone
from mmcli.train.plan import Plan, make_plan
from mmcli.train.schedule import learning_rate
from mmcli.train.signals import StopSignals
from mmcli.train.task import StepBatch, Task


def train(task: Task, optim: OptimConfig, config: TrainConfig, context: StageContext) -> dict[str, Any]:
    """Train `task` to its end, to the end of its budget, or until a signal; the totals of the run.

    Raises:
        Interrupted: a signal came; everything is saved.
        MmcliError: the loss became NaN or infinite, or a step has no batch.
    """
    return _Training(task, optim, config, context).run()


class _Training:
    def __init__(self, task: Task, optim: OptimConfig, config: TrainConfig, context: StageContext) -> None:
        self.task, self.optim, self.config = task, optim, config
        self.context, self.report, self.run_folder = context, context.report, context.run
        self.model, self.device = task.model, task.accelerator.device
        dtype = torch.bfloat16 if task.accelerator.precision == "bf16" else torch.float32
        self.optimizer = build_optimizer(self.model, optim, dtype=dtype)
        self.feed = Feed(task, config.seed)
        self.progress = Progress()
        self.last: dict[str, Any] = {}
        self.step_seconds: list[float] = []  # of the newest steps
        self.step_tokens: list[int] = []
        self.saved_at: int | None = None

    def run(self) -> dict[str, Any]:
        keep_freed_memory()
        if self.context.resume:
            self._load()
        self.run_folder.update(metrics=[dataclasses.asdict(metric) for metric in self.task.metrics])
        with self.feed:
            plan = make_plan(self.task, self.config, self.context, self._probe)
            self.forward = torch.compile(self.model, dynamic=False) if plan.compile else self.model
            self.peak_flops = measure_peak_flops(self.task.accelerator)
            self.metrics = MetricsFile(self.run_folder.metrics, from_step=self.progress.step)
            with contextlib.closing(self.metrics), StopSignals() as stop:
                return self._loop(plan, stop)

    def _load(self) -> None:
        found = load_newest(self.run_folder.checkpoints, self.model, self.optimizer, self.report)
        if found is None:
            self.report.note("no checkpoint yet: starting from the first step")
            return
        self.progress = found
        self.report.note(f"resumed at step {found.step}")

    def _probe(self) -> tuple[float, int]:
        """(seconds, tokens) of a step: its rollouts, a micro-batch's forward and backward scaled up, and the update.

        The update is measured and undone.
        """
        started = time.perf_counter()
        batches = self.feed.batches(self.progress.step)
        rollout_seconds = time.perf_counter() - started if self.task.rollouts is not None else 0.0
        backward_seconds = self._time(lambda: self._backward(self.model, batches[0], batches[0].counts))
        with undone(self.optimizer):
            update_seconds = self._time(lambda: (self._clip(), self.optimizer.step()))
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(batch.tokens for batch in batches)
        return rollout_seconds + backward_seconds * tokens / max(1, batches[0].tokens) + update_seconds, tokens

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of `work`, the best of two after one to warm up."""
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _loop(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        started = last_save = time.perf_counter()
        first_save = True
        while self.progress.step < plan.steps and stop.received is None:
            now = time.perf_counter()
            if plan.budget_seconds is not None and now - started > plan.budget_seconds:
                break
            step_started = now
            values = self._evaluate() if self.progress.step % plan.eval_every == 0 else {}
            values |= self._step(plan.steps)
            self._sample(plan)
            self._log(values, plan)
            self.progress.elapsed_seconds += time.perf_counter() - step_started
            waited = time.perf_counter() - last_save
            if plan.checkpoint_due(self.progress.step, waited, first_save) and self.progress.step < plan.steps:
                self._save()
                last_save, first_save = time.perf_counter(), False
        return self._finish(plan, stop)

    def _step(self, steps: int) -> dict[str, Any]:
        """One optimizer step; the values logged of it, under the number of updates done before it."""
        started = time.perf_counter()
        step = self.progress.step
        rate = learning_rate(step, steps, self.optim)
        set_learning_rate(self.optimizer, rate)
        batches = self.feed.batches(step, last=step + 1 == steps)
        seed_step(self.config.seed, step)
        self.model.train()
        totals: dict[str, float] = {}
        for batch in batches:
            for name, count in batch.counts.items():
                totals[name] = totals.get(name, 0.0) + count
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        for batch in batches:
            for name, term in self._backward(self.forward, batch, totals).items():
                value = term.sum.detach()
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0.0) + term.count
        norm = self._clip()
        means = {name: (value / max(1.0, counts[name])).tolist() for name, value in sums.items()}
        wrong = [name for name, mean in means.items() if not np.isfinite(mean).all()]
        if wrong or not math.isfinite(norm):
            name = wrong[0] if wrong else "gradient"
            raise MmcliError(
                f"non-finite loss: the {name} became NaN or infinite at step {step} (learning rate {rate:.2g})",
                "lower --lr, or raise the warm-up: --set optim.warmup_ratio=0.1",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        tokens = sum(batch.tokens for batch in batches)
        self.progress.step += 1
        self.progress.tokens += tokens
        self.step_seconds = [*self.step_seconds, time.perf_counter() - started][-20:]
        self.step_tokens = [*self.step_tokens, tokens][-20:]
        return {"step": step, "tokens": self.progress.tokens, **means, "lr": rate, "grad_norm": norm}

    def _backward(self, forward: Callable[..., Any], batch: StepBatch, totals: Mapping[str, float]) -> dict[str, Term]:
        """Forward and backward of one micro-batch, as its share of a step that has `totals`; terms and metrics."""
        with self.task.accelerator.autocast():
            out = self.task.loss(forward, batch.to(self.device))
        total: Tensor | None = None
        for name, term in out.terms.items():
            assert term.count == batch.counts[name], f"{name}: the loss counts {term.count}, the batch {batch.counts}"
            share = term.coef * term.sum / max(1.0, totals[name])
            total = share if total is None else total + share
        assert total is not None
        total.backward()
        return {**out.terms, **out.metrics}

    def _clip(self) -> float:
        """Clip the gradient; its norm before."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.optim.clip if self.optim.clip > 0 else float("inf")
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def _evaluate(self) -> dict[str, Any]:
        if self.task.evaluate is None:
            return {}
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
        self.metrics.write(values)
        self.last |= values
        left = (plan.steps - self.progress.step) * sum(self.step_seconds) / len(self.step_seconds)
        where = {"step": self.progress.step, "steps": plan.steps, "eta_seconds": left}
        self.report.step({**values, **where}, self.task.metrics)

    def _save(self) -> None:
        """A checkpoint, and the model in Hugging Face format."""
        if self.saved_at == self.progress.step:
            return
        save_checkpoint(
            self.run_folder.checkpoints, self.model, self.optimizer, self.progress, self.config.keep_checkpoints
        )
        with atomic_folder(self.run_folder.model) as folder:
            self.task.save_model(folder)
        self.saved_at = self.progress.step
        self.run_folder.update(steps_done=self.progress.step, tokens=self.progress.tokens)

    def _finish(self, plan: Plan, stop: StopSignals) -> dict[str, Any]:
        step, steps = self.progress.step, plan.steps
        values = self._evaluate()
        if values:
            self.metrics.write({"step": step, "tokens": self.progress.tokens, **values})
            self.last |= values
        self._save()
        headline = self.task.metrics[0].name
        totals = {
            "steps_done": step,
            "steps": steps,
            "tokens": self.progress.tokens,
            "elapsed_seconds": round(self.progress.elapsed_seconds, 1),
            **{key: self.last[key] for key in (headline, *values) if key in self.last},
        }
        self.run_folder.update(**totals)
        if stop.received is not None and step < steps:
            name = signal.Signals(stop.received).name
            what = f"stopped by {name} after step {step} of {steps}; everything is saved in {self.run_folder.path}"
            raise Interrupted(what, f"resume it: mmcli resume {self.run_folder.number}", stop.received)
        if step < steps:
            self.report.note(f"the budget of {self.config.budget} ended after step {step} of {steps}")
            return {**totals, "state": "stopped", "reason": "end of the budget"}
        held_out = [metric for metric in self.task.metrics if metric.held_out and metric.name in values]
        if held_out:
            shown = (f"{metric.title} {metric.number(values[metric.name])}" for metric in held_out)
            self.report.note("held-out: " + "  ".join(shown))
        return totals
