"""What a stage is, and an adapter. Built-ins and plugins use this and nothing else to join mmcli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmcli.config import STAGE, Layer, Resolved
from mmcli.ranks import Ranks

if TYPE_CHECKING:
    from mmcli.find import References
    from mmcli.run import ModelRef, Run

API_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One `mmcli NAME` command, registered as an entry point of the group `mmcli.stages`."""

    name: str  # mmcli <name>
    summary: str  # the help line
    config: type  # a frozen dataclass; its fields are the options
    run: str  # "package.module:function", called with (resolved config, context)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # {"optim.lr": 1e-4}; presets win over them
    example: str = ""  # one command line for --help
    api: int = 1  # the API_VERSION that it was written for; what does not say is of the first

    @property
    def layer(self) -> Layer:
        """The stage's own defaults, the lowest layer of its configuration."""
        return Layer(f"{STAGE}{self.name}", self.defaults)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What `--adapter NAME` gives any training stage, registered as an entry point of the group `mmcli.adapters`."""

    name: str
    summary: str
    config: type  # a frozen dataclass; `--adapter-set key=value` fills it
    build: str  # "package.module:function", called with the resolved config; it returns a Transform
    reads: tuple[str, ...] = ()  # settings that name a file or a folder, whose content a run keeps and compares
    api: int = 1  # the API_VERSION that it was written for; what does not say is of the first


class Transform(Protocol):
    """What an adapter does to a Transformer, which keeps its forward pass, with parts of the adapter's own inside.

    Training sees only parameters that require a gradient: they alone are optimized and stored in checkpoints.
    """

    def apply(self, model: Any, seed: int) -> None:
        """Freeze `model` and insert trainable parts in place, the same for the same seed.

        The names and tensors of the frozen parameters stay as they are.

        Raises:
            UserError: this model has nothing to adapt.
        """

    def merge(self, model: Any) -> Any:
        """A plain Transformer that computes the same in eval mode. `model` stays trainable as it is.

        What the adapter does not change may share memory with `model`.
        """

    def save(self, folder: Path, model: Any) -> None:
        """Write the adapter's own part alone into a folder that exists: safetensors, JSON and text."""

    def reference(self, model: Any) -> AbstractContextManager[None]:
        """While it is entered, `model` computes as it did after `apply`: the frozen reference of DPO for free."""


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


@dataclass(frozen=True)
class Metric:
    """A logged value that is shown: in the live line, in `mmcli runs` and in reports. The others are only logged.

    Attributes:
        name: key of the value in metrics.jsonl: a term or metric of the loss, or a value of `Task.evaluate`, whose
            names begin with `val_`.
        format: format spec of a number, such as ".3f" or ".0%"; of a list, its smallest and its largest are shown.
        label: short words before the number, by default the name; a single letter stands without a space: H1.00.
        group: metrics of one group are shown together, and in a line only where there is room for all of them.
        higher_is_better: of a value on held-out data: such as a reward; the best model is the one with the most.

    Raises:
        ValueError: the format is not one of a float.
    """

    name: str
    format: str = ".3f"
    label: str = ""
    group: str = ""
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        format(0.0, self.format)

    @property
    def held_out(self) -> bool:
        """Measured on held-out data, at evaluation intervals."""
        return self.name.startswith("val_")

    @property
    def title(self) -> str:
        """The name in words, without `val_`."""
        return self.name.removeprefix("val_").replace("_", " ")

    def number(self, value: Any) -> str:
        """The value as it is shown, without words: 1.853, or 12-38% of a list."""
        if not isinstance(value, list):
            return format(float(value), self.format)
        low, high = (format(float(each), self.format) for each in (min(value), max(value)))
        return f"{low.removesuffix('%')}-{high}"

    def text(self, value: Any) -> str:
        """The label and the value: `loss 1.853`."""
        label = self.label or self.title
        return f"{label}{'' if len(label) == 1 else ' '}{self.number(value)}"


class Reporter(Protocol):
    """Where the library says what it does; only `cli/` prints."""

    def note(self, text: str) -> None:
        """One line for the person: a choice made for them, a checkpoint saved."""

    def warn(self, text: str) -> None:
        """One line that needs attention, without stopping."""

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        """How far a long job is; `done == total` ends it."""

    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        """One training step: step, steps, lr, tokens_per_second, mfu, elapsed_seconds, eta_seconds, metrics and others.

        `busy` says in words that steps take several times their usual time. Of the rest `metrics` are shown; one
        without a value in this step, or with None, is left out.
        """

    def sample(self, prompt: str, text: str) -> None:
        """A text that the model wrote during training."""

    def close(self) -> None:
        """End a line that is still being redrawn: what follows is printed below it."""


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, task: str, done: float, total: float | None, unit: str) -> None: ...
    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None: ...
    def sample(self, prompt: str, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Trial:
    """A few steps of a training that are measured, in place of all of it. Nothing of them is saved.

    Attributes:
        steps: optimizer steps that are timed, after one to warm up; fewer where they are slow.
        share: part of the whole data that the stage is given, above 0 up to 1.
    """

    steps: int = 3
    share: float = 1.0


@dataclass(frozen=True)
class StageContext:
    """What a stage is given besides its config."""

    run: Run  # the run folder it writes
    report: Reporter
    resolved: Resolved[Any]  # the config with the source of each value
    resume: bool = False  # continue from the run's latest valid checkpoint
    allow: frozenset[str] = frozenset()  # kinds of input that may have changed since the run began (see mmcli.inputs)
    references: References | None = None  # models that are found already, so that each is found once
    trial: Trial | None = None  # the training is only measured
    ranks: Ranks = field(default_factory=Ranks)  # the processes that train together

    @property
    def runs_dir(self) -> Path:
        """The folder of the runs that a person names."""
        return self.references.runs_dir if self.references is not None else self.run.path.parent

    def tell_prepared(self, *, trains: bool = True) -> None:
        """Let the other ranks begin, who read what this one has made; or leave, where there is nothing to train."""
        run = str(self.run.path.absolute())
        self.ranks.prepared({"trains": trains, "run": run, "resume": self.resume, "allow": sorted(self.allow)})

    def find_model(self, ref: str) -> ModelRef:
        """The model that a person named; the same one whenever it is asked for in this run.

        Raises:
            UserError: there is none.
        """
        from mmcli.find import References

        references = self.references or References(self.run.path.parent)
        return references.model(ref)
