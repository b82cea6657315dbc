"""The contract of the training loop: what a stage gives it (`Task`), and what a micro-batch is (`StepBatch`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import torch
from torch import nn

from mmcli.generate.engine import Engine
from mmcli.stage import LossOutput, Metric
from mmcli.train.device import Accelerator

P = TypeVar("P")


class StepBatch(Protocol):
    """A micro-batch of indivisible units (rows, pairs), on the host until its turn comes."""

    @property
    def counts(self) -> Mapping[str, float]:
        """For each term of the loss, what it is averaged over (tokens, rows, pairs): known before the forward."""

    @property
    def tokens(self) -> int:
        """Tokens in it, padding not counted."""

    def to(self, device: torch.device) -> Any:
        """The batch on `device`, as the loss takes it; a copy from pinned memory need not wait."""


@dataclass(frozen=True)
class MicroBatches(Generic[P], Sequence[StepBatch]):
    """Micro-batches that are made when they are asked for: each rank asks for its own alone.

    Attributes:
        parts: what each is made of, such as numbers of rows.
        make: the micro-batch of a part.
    """

    parts: Sequence[P]
    make: Callable[[P], StepBatch]

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, at: int) -> StepBatch: ...
    @overload
    def __getitem__(self, at: slice) -> MicroBatches[P]: ...
    def __getitem__(self, at: int | slice) -> StepBatch | MicroBatches[P]:
        return MicroBatches(self.parts[at], self.make) if isinstance(at, slice) else self.make(self.parts[at])


@dataclass(frozen=True)
class Rollouts:
    """Micro-batches made of what the model itself writes, before each step (on-policy training).

    Attributes:
        batches: the micro-batches of a step, on the host. It gets an engine over the live weights and the step. The
            engine's caches are empty; torch's random state is that of the step. No gradient is recorded.
        slots: sequences that the engine holds at a time.
        max_len: tokens of one sequence; None: the longest context of the model.
    """

    batches: Callable[[Engine, int], Sequence[StepBatch]]
    slots: int = 1
    max_len: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training, as a stage gives it to the loop.

    Attributes:
        model: what is trained, on the accelerator's device; the loop switches between train and eval mode.
        accelerator: device and precision.
        batches: the micro-batches of a step (from 0) on the host: a function of the step alone, else a resumed run
            differs. The loop calls it from a thread of its own, one step ahead, and deals them to the ranks; with
            `MicroBatches` a rank makes no more than its own.
        rollouts: further micro-batches of each step, of what the model writes; with or without `batches`.
        loss: terms and metrics of a micro-batch, given the model (or its compiled form) and what `StepBatch.to` gave.
        steps_per_epoch: optimizer steps in which all data is seen once.
        flops_per_token: FLOPs of forward and backward, for the MFU.
        save_model: fills a folder with the model in Hugging Face format.
        save_adapter: writes an adapter's own part into the run, after each `model/`.
        metrics: the values that are shown, the first being the headline of the run.
        evaluate: values on held-out data, in eval mode under autocast; their names begin with `val_`.
        evaluation_tokens: tokens that one evaluation reads.
        halve: have half as many units in each micro-batch from now on, on resume too; how many these are, or None where
            it is a single one. Without it, a step that does not fit into memory ends the training.
        describe: what the micro-batches with these numbers hold in a step, in words: the records to look at.
        sample: (prompt, continuation) of texts to show, given the model and the number of updates done.
        planned: told the number of steps of the whole training before the first step; batches may depend on it.
        prepared_seconds: what it took to make the weights that a new training begins with; a part of a budget.

    Raises:
        ValueError: neither batches nor rollouts, or no metric.
    """

    model: nn.Module
    accelerator: Accelerator
    loss: Callable[[Any, Any], LossOutput]
    steps_per_epoch: float
    flops_per_token: float
    save_model: Callable[[Path], None]
    save_adapter: Callable[[], None] | None = None
    batches: Callable[[int], Sequence[StepBatch]] | None = None
    rollouts: Rollouts | None = None
    metrics: tuple[Metric, ...] = (Metric("loss"),)
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    evaluation_tokens: int = 0
    halve: Callable[[], int | None] | None = None
    describe: Callable[[int, Sequence[int]], str] | None = None
    sample: Callable[[nn.Module, int], list[tuple[str, str]]] | None = None
    planned: Callable[[int], None] | None = None
    prepared_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.batches is None and self.rollouts is None:
            raise ValueError("a Task needs batches or rollouts")
        if not self.metrics:
            raise ValueError("a Task needs a metric to show")
