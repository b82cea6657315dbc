"""What a stage is. Built-in stages and plugins use this and nothing else to join mmcli."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mmcli.config import Resolved

if TYPE_CHECKING:
    from mmcli.run import Run

API_VERSION = 1
ENTRY_POINT_GROUP = "mmcli.stages"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One `mmcli NAME` command, registered as an entry point of the group `mmcli.stages`."""

    name: str  # mmcli <name>
    summary: str  # the help line
    config: type  # a frozen dataclass; its fields are the options
    run: str  # "package.module:function", called with (resolved config, context)
    example: str = ""  # one command line for --help
    api: int = API_VERSION


@dataclass(frozen=True)
class Term:
    """One term of a loss: `sum` over its own `count` (tokens, rows, pairs), weighted by `coef`.

    The step's loss is the sum over terms of coef * (all sums of the step) / (all counts of the step).
    """

    sum: Any  # scalar tensor, differentiable
    count: float
    coef: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """What a stage's loss returns for one micro-batch: terms, and sums of metrics with their counts."""

    terms: Mapping[str, Term]
    metrics: Mapping[str, Term] = field(default_factory=dict)


class Reporter(Protocol):
    """Where the library says what it does; only `cli/` prints."""

    def note(self, text: str) -> None:
        """One line for the person: a choice made for them, a checkpoint saved."""

    def warn(self, text: str) -> None:
        """One line that needs attention, without stopping."""

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        """How far a long job is; `done == total` ends it."""

    def step(self, values: Mapping[str, Any]) -> None:
        """One training step: step, steps, loss, lr, tokens_per_second, mfu, eta_seconds, ..."""

    def sample(self, prompt: str, text: str) -> None:
        """A text that the model wrote during training."""


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, task: str, done: float, total: float | None, unit: str) -> None: ...
    def step(self, values: Mapping[str, Any]) -> None: ...
    def sample(self, prompt: str, text: str) -> None: ...


@dataclass(frozen=True)
class StageContext:
    """What a stage is given besides its config."""

    run: Run  # the run folder it writes
    report: Reporter
    resolved: Resolved[Any]  # the config with the source of each value
    resume: bool = False  # go on from the run's newest whole checkpoint
