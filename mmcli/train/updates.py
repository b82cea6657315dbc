"""One optimizer step: forward and backward of its micro-batches, clipping, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmcli.errors import MmcliError
from mmcli.ranks import Ranks
from mmcli.stage import Reporter, Term
from mmcli.train.config import OptimConfig
from mmcli.train.device import seed_step
from mmcli.train.feed import Feed
from mmcli.train.memory import free_cached, is_out_of_memory
from mmcli.train.optim import set_learning_rate
from mmcli.train.schedule import Horizon, learning_rate
from mmcli.train.shard import full, is_sharded, sync_gradients
from mmcli.train.speed import synchronize
from mmcli.train.task import StepBatch, Task

T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        means: each term and metric of the loss, the mean over the step, all ranks included.
        rate: learning rate.
        norm: of the gradient, before it was clipped.
        tokens: of its micro-batches, over all ranks.
        wrong: what became NaN or infinite, "loss" or "gradient"; None: nothing, and the weights were updated.
        where: numbers of the micro-batches whose loss did so; all of them where only the gradient did.
    """

    means: Mapping[str, Any]
    rate: float
    norm: float
    tokens: int
    wrong: str | None = None
    where: Sequence[int] = ()


class _ShortElsewhere(MemoryError):
    """Another rank has not enough memory for its micro-batches."""


class Updates:
    """The optimizer steps of a training. Ranks take the same ones: what they differ in is only their micro-batches."""

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
        ranks: Ranks | None = None,
    ) -> None:
        """
        Args:
            rate_scale: factor of every learning rate.
        """
        self._task, self._optim, self._optimizer, self._feed, self._report = task, optim, optimizer, feed, report
        self._seed, self._rate_scale, self._ranks = seed, rate_scale, ranks or Ranks()
        self._through = False  # with the micro-batches of the step, as all ranks are
        self.forward: Any = task.model  # or its compiled form
        self.halved = False  # memory did not suffice for the micro-batch at first
        # Of an adapter the gradients stay in memory. They are small, and where they come anew amid what a backward pass
        # frees, the next forward pass finds no room for its large tensors there: 11 % of the memory of DPO with LoRA.
        self._keeps_gradients = not all(each.requires_grad for each in task.model.parameters())
        for each in task.model.parameters() if self._keeps_gradients else ():
            each.grad = torch.zeros_like(each) if each.requires_grad else None

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
        self.clear_gradients()
        return result

    def _gradient(self, step: int, rate: float, *, last: bool) -> StepResult:
        """The clipped gradient of a step, left in the parameters.

        The host waits for the device once, for what it logs and decides by; the update then runs while the host makes
        the next step ready.
        """
        batches = self._feed.batches(step, last=last)
        seed_step(self._seed, step, self._ranks.rank)
        self._task.model.train()
        totals = self.totals(batches.values())
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        losses = {}
        passes = self._passes(batches)
        for i, (number, batch) in enumerate(passes):
            sync_gradients(self._task.model, i + 1 == len(passes))
            if number is None:
                self.backward(self.forward, batch, totals, weight=0.0)
                continue
            losses[number], terms = self.backward(self.forward, batch, totals)
            for name, term in terms.items():
                value = term.sum.detach()
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0.0) + term.count
        self.sum_gradients()
        *values, norm = on_host([*sums.values(), self.clip()])
        own = {name: (value, counts[name]) for name, value in zip(sums, values, strict=True)}
        found = self._ranks.gather((own, sum(batch.tokens for batch in batches.values())))
        means, tokens = _means([part for part, _ in found]), sum(count for _, count in found)
        wrong = next((name for name, mean in means.items() if not np.isfinite(mean).all()), None)
        if wrong is None and math.isfinite(norm):
            return StepResult(means, rate, norm, tokens)
        not_finite = [number for number, loss in losses.items() if not bool(loss.isfinite())]
        where = self._of_all(not_finite) or self._of_all([*losses])
        return StepResult(means, rate, norm, tokens, wrong or "gradient", where)

    def _passes(self, batches: Mapping[int, StepBatch]) -> list[tuple[int | None, StepBatch]]:
        """The micro-batches with their numbers, in the order of their passes.

        Where the weights are split, every rank takes part in every pass: one with fewer micro-batches than another
        repeats its last for nothing, without a number.
        """
        passes: list[tuple[int | None, StepBatch]] = [*batches.items()]
        if is_sharded(self._task.model):
            counts = self._ranks.gather(len(passes))
            if min(counts) == 0:
                what = f"rank {counts.index(0)} has no micro-batch, and --shard needs one on every rank"
                raise MmcliError(what, "give a larger --batch-size, or fewer processes")
            passes += [(None, passes[-1][1])] * (max(counts) - len(passes))
        return passes

    def totals(self, batches: Iterable[StepBatch]) -> dict[str, float]:
        """What each term is averaged over in a step: the counts of all its micro-batches, on every rank."""
        own: dict[str, float] = {}
        for batch in batches:
            _add(own, batch.counts)
        totals: dict[str, float] = {}
        for counts in self._agree(own):
            _add(totals, counts)
        return totals

    def sum_gradients(self) -> None:
        """Over the ranks, once each is through with its micro-batches."""
        self._agree("through")
        self._through = True
        if not is_sharded(self._task.model):  # else the last backward pass has done it
            self._ranks.sum_gradients(self._task.model.parameters())

    def _of_all(self, numbers: list[int]) -> list[int]:
        return sorted(number for part in self._ranks.gather(numbers) for number in part)

    def _agree(self, value: T) -> list[T]:
        """What each rank gives; one that is short of memory gives None (see `fitting`)."""
        found = self._ranks.gather(value)
        if None in found:
            raise _ShortElsewhere
        return found

    def backward(
        self, forward: Callable[..., Any], batch: StepBatch, totals: Mapping[str, float], *, weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Term]]:
        """Forward and backward of a micro-batch, as its share of a step that has `totals`: its loss; terms, metrics.

        Args:
            weight: of its gradient.
        """
        with self._task.accelerator.autocast():
            out = self._task.loss(forward, batch.to(self._task.accelerator.device))
        total: Tensor | None = None
        for name, term in out.terms.items():
            assert term.count == batch.counts[name], f"{name}: the loss counts {term.count}, the batch {batch.counts}"
            share = term.coef * term.sum / max(1.0, totals[name])
            total = share if total is None else total + share
        assert total is not None
        (total if weight == 1.0 else total * weight).backward()
        return total.detach(), {**out.terms, **out.metrics}

    def clip(self) -> Tensor:
        """Clip the gradient; its norm before, on the device."""
        parameters = [p for p in self._task.model.parameters() if p.grad is not None]
        limit = self._optim.clip if self._optim.clip > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return full(norm)

    def fitting(self, work: Callable[[], T]) -> T:
        """What `work` returns, with half as many units per forward pass as often as memory does not suffice.

        The batch of a step stays as it is, and so does its loss, up to rounding: the counts of all micro-batches are
        known before the first. Where one rank has not enough memory, all have smaller micro-batches from then on.

        Raises:
            MmcliError: out of memory with a single unit.
        """
        while True:
            self._through = False
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if is_sharded(self._task.model):  # the others wait in the midst of a pass
                    fix = "give a lower --micro-batch, or a shorter --seq-len"
                    raise MmcliError("out of memory in a training step with --shard", fix) from None
                if self._through and self._ranks.world > 1:  # the others do not wait for what this one says
                    raise MmcliError("out of memory in an update", "give a smaller model, or --shard") from None
                if not isinstance(error, _ShortElsewhere):
                    self._ranks.gather(None)
            # Outside of the handler: the error holds the frames, and they hold the tensors of the pass that failed.
            self.clear_gradients()
            free_cached(self._task.accelerator.device)
            size = self._task.halve() if self._task.halve is not None else None
            if size is None:
                raise MmcliError("out of memory in a training step", "give a shorter --seq-len, or a smaller model")
            self.halved = True
            self._feed.forget()
            self._report.note(f"out of memory: --micro-batch {size} from now on, in steps of the same --batch-size")

    def clear_gradients(self) -> None:
        """Forget the gradients, as before a step."""
        self._optimizer.zero_grad(set_to_none=not self._keeps_gradients)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        synchronize(self._task.accelerator.device)


def on_host(tensors: Sequence[Tensor]) -> list[Any]:
    """The values of tensors as numbers and lists, for which the host waits once."""
    device = tensors[0].device
    flat = torch.cat([each.reshape(-1).to(device) for each in tensors]).cpu()
    parts = flat.split([each.numel() for each in tensors])
    return [
        part.view(each.shape).tolist() if each.dim() else part.tolist()[0]
        for part, each in zip(parts, tensors, strict=True)
    ]


def _add(totals: dict[str, float], counts: Mapping[str, float]) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0.0) + count


def _means(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each value's sum over its count, of (sum, count) on every rank."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: _mean([value for value, _ in each], sum(count for _, count in each)) for name, each in found.items()}


def _mean(values: list[Any], count: float) -> Any:
    return (torch.tensor(values).sum(dim=0) / max(1.0, count)).tolist()
