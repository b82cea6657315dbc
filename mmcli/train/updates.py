"""One optimizer step: forward and backward of its micro-batches, clipping, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmcli.errors import MmcliError
from mmcli.stage import Reporter, Term
from mmcli.train.config import OptimConfig
from mmcli.train.device import seed_step
from mmcli.train.feed import Feed
from mmcli.train.memory import free_cached, is_out_of_memory
from mmcli.train.optim import set_learning_rate
from mmcli.train.schedule import Horizon, learning_rate
from mmcli.train.speed import synchronize
from mmcli.train.task import StepBatch, Task

T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        means: each term and metric of the loss, the mean over the step.
        rate: learning rate.
        norm: of the gradient, before it was clipped.
        tokens: of its micro-batches.
        wrong: what became NaN or infinite, "loss" or "gradient"; None: nothing, and the weights were updated.
        where: numbers of the micro-batches whose loss did so; all of them where only the gradient did.
    """

    means: Mapping[str, Any]
    rate: float
    norm: float
    tokens: int
    wrong: str | None = None
    where: Sequence[int] = ()


class Updates:
    """The optimizer steps of a training."""

    def __init__(
        self,
        task: Task,
        optim: OptimConfig,
        optimizer: torch.optim.Optimizer,
        feed: Feed,
        report: Reporter,
        *,
        seed: int,
        rate_scale: float = 1.0,
    ) -> None:
        """
        Args:
            rate_scale: factor of every learning rate.
        """
        self._task, self._optim, self._optimizer, self._feed, self._report = task, optim, optimizer, feed, report
        self._seed, self._rate_scale = seed, rate_scale
        self.forward: Any = task.model  # or its compiled form
        self.halved = False  # memory did not suffice for the micro-batch at first

    def step(self, step: int, horizon: Horizon) -> StepResult:
        """Step number `step`. Where its loss or its gradient is not finite, the weights stay as they were.

        Raises:
            MmcliError: the step has no batch, or memory does not suffice for a single unit.
        """
        rate = learning_rate(horizon.position(step), horizon.fits[0][1], self._optim) * self._rate_scale
        set_learning_rate(self._optimizer, rate)
        result = self.fitting(lambda: self._gradient(step, rate, last=step + 1 == horizon.steps))
        if result.wrong is None:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.wait()
        return result

    def _gradient(self, step: int, rate: float, *, last: bool) -> StepResult:
        """The clipped gradient of a step, left in the parameters."""
        batches = self._feed.batches(step, last=last)
        seed_step(self._seed, step)
        self._task.model.train()
        totals: dict[str, float] = {}
        for batch in batches:
            for name, count in batch.counts.items():
                totals[name] = totals.get(name, 0.0) + count
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        losses = []
        for batch in batches:
            loss, terms = self.backward(self.forward, batch, totals)
            losses.append(loss)
            for name, term in terms.items():
                value = term.sum.detach()
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0.0) + term.count
        norm = self.clip()
        means = {name: (value / max(1.0, counts[name])).tolist() for name, value in sums.items()}
        tokens = sum(batch.tokens for batch in batches)
        wrong = next((name for name, mean in means.items() if not np.isfinite(mean).all()), None)
        if wrong is None and math.isfinite(norm):
            return StepResult(means, rate, norm, tokens)
        finite: list[bool] = torch.stack(losses).isfinite().tolist()
        where = [number for number, fine in enumerate(finite) if not fine] or list(range(len(finite)))
        return StepResult(means, rate, norm, tokens, wrong or "gradient", where)

    def backward(
        self, forward: Callable[..., Any], batch: StepBatch, totals: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Term]]:
        """Forward and backward of a micro-batch, as its share of a step that has `totals`: its loss; terms, metrics."""
        with self._task.accelerator.autocast():
            out = self._task.loss(forward, batch.to(self._task.accelerator.device))
        total: Tensor | None = None
        for name, term in out.terms.items():
            assert term.count == batch.counts[name], f"{name}: the loss counts {term.count}, the batch {batch.counts}"
            share = term.coef * term.sum / max(1.0, totals[name])
            total = share if total is None else total + share
        assert total is not None
        total.backward()
        return total.detach(), {**out.terms, **out.metrics}

    def clip(self) -> float:
        """Clip the gradient; its norm before."""
        parameters = [p for p in self._task.model.parameters() if p.grad is not None]
        limit = self._optim.clip if self._optim.clip > 0 else float("inf")
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def fitting(self, work: Callable[[], T]) -> T:
        """What `work` returns, with half as many units per forward pass as often as memory does not suffice.

        The batch of a step stays as it is, and so does its loss, up to rounding: the counts of all micro-batches are
        known before the first.

        Raises:
            MmcliError: out of memory with a single unit.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the handler: the error holds the frames, and they hold the tensors of the pass that failed.
            self._optimizer.zero_grad(set_to_none=True)
            free_cached(self._task.accelerator.device)
            size = self._task.halve() if self._task.halve is not None else None
            if size is None:
                raise MmcliError("out of memory in a training step", "give a shorter --seq-len, or a smaller model")
            self.halved = True
            self._feed.forget()
            self._report.note(f"out of memory: --micro-batch {size} from now on, in steps of the same --batch-size")

    def wait(self) -> None:
        """Until the device has done what it was given."""
        synchronize(self._task.accelerator.device)
