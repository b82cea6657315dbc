"""The micro-batches of each step: those of the data prepared one step ahead in a thread, those of rollouts in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from mmcli.errors import MmcliError
from mmcli.generate.engine import Engine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.transformer import Transformer
from mmcli.ranks import Ranks
from mmcli.train.device import Accelerator, seed_step
from mmcli.train.shard import release
from mmcli.train.task import Rollouts, StepBatch, Task

Mine = tuple[dict[int, StepBatch], int]  # this rank's micro-batches by number, and how many all ranks have


class Feed:
    """Host batches of a task. While entered, a thread prepares those of the next step; it ends with the `with` block.

    The thread calls `Task.batches` for one step after the other; what it raises comes out of `batches`. The
    micro-batches of a step are dealt to the ranks in turn: together they train on what one process would.
    """

    def __init__(self, task: Task, seed: int, ranks: Ranks | None = None) -> None:
        self._task, self._seed, self._ranks = task, seed, ranks or Ranks()
        self._ahead: dict[int, Future[Mine]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def batches(self, step: int, *, last: bool = False) -> dict[int, StepBatch]:
        """This rank's micro-batches of `step`, by their numbers among those of all ranks.

        Those of data are kept until the next step is asked for. A rank may have none where another has one.

        Args:
            last: there is no next step to prepare.

        Raises:
            MmcliError: there is none.
        """
        of_data, before = self._from_data(step, last)
        of_rollouts, after = self._from_rollouts(step)
        if not before + after:
            raise MmcliError(f"step {step} has no batch", "batches and rollouts must give one or more a step")
        return {**of_data, **{before + number: batch for number, batch in of_rollouts.items()}}

    def forget(self) -> None:
        """Make every batch anew: they are cut otherwise from now on."""
        self._ahead = {}

    def _from_data(self, step: int, last: bool) -> Mine:
        make = self._task.batches
        if make is None:
            return {}, 0

        def mine(step: int) -> Mine:
            return self._deal(make(step))

        wanted = [step] if last else [step, step + 1]
        self._ahead = {
            each: self._ahead[each] if each in self._ahead else self._thread.submit(mine, each) for each in wanted
        }
        return self._ahead[step].result()

    def _deal(self, batches: Sequence[StepBatch]) -> Mine:
        return self._ranks.share(batches), len(batches)

    def _from_rollouts(self, step: int) -> Mine:
        """Every rank writes all of them, alike, and trains on its share."""
        if self._task.rollouts is None:
            return {}, 0
        model = self._task.model
        assert isinstance(model, Transformer), f"rollouts need a Transformer, not {type(model).__name__}"
        with live_engine(model, self._task.rollouts, self._task.accelerator, self._seed, step) as engine:
            written = self._deal(self._task.rollouts.batches(engine, step))
        release(model)
        return written


@contextlib.contextmanager
def live_engine(
    model: Transformer, rollouts: Rollouts, accelerator: Accelerator, seed: int, step: int
) -> Iterator[Engine]:
    """An engine over a model in training: eval mode, no gradients, the random state of the step, autocast on a GPU.

    Afterwards the mode of every module and torch's random state are as they were.
    """
    training = {module: module.training for module in model.modules()}
    on_cuda = accelerator.device.type == "cuda"
    try:
        with (
            torch.random.fork_rng([accelerator.device] if on_cuda else []),
            torch.no_grad(),
            accelerator.autocast(),
        ):
            seed_step(seed, step)
            yield TorchEngine(model, slots=rollouts.slots, max_len=rollouts.max_len)
    finally:
        for module, mode in training.items():
            module.training = mode
