"""Suites that measure a model in a way of their own, such as a harness of benchmarks: what they get, what they give.

`mmcli eval --suite NAME:ARGUMENT` hands the argument to such a suite, which alone knows what it means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mmcli.errors import MmcliError, UserError
from mmcli.evaluation.engines import choose_backend
from mmcli.evaluation.suites import find_suite, split_suite
from mmcli.plugins import contained, load_function
from mmcli.report.evaluations import figure_text
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """What a suite is asked to measure.

    Attributes:
        argument: what follows the suite's name and a colon; "" for nothing.
        limit: questions of each task, at most; None: all.
        max_new_tokens: of a reply, at most; None: as the suite has it.
        backend, device: of the engine, as `load_engine` takes them.
    """

    model: ModelRef
    argument: str = ""
    limit: int | None = None
    max_new_tokens: int | None = None
    backend: str = "torch"
    device: str = "auto"
    report: Reporter = field(default_factory=Silent)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a model.

    Attributes:
        task: what it is of; "" for the whole suite.
        name: "acc", "pass@1".
        error: its standard error; None where that is not known.
        questions: how many it is the mean of.
        format: format spec of a number: ".1%" for a share, ".3f".
    """

    task: str
    name: str
    value: float
    error: float | None = None
    questions: int | None = None
    format: str = ".1%"

    def __post_init__(self) -> None:
        format(0.0, self.format)

    @property
    def text(self) -> str:
        """The value with its standard error: `41.2% ± 1.3%`."""
        return figure_text(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As `mmcli eval --json` prints it; what is not finite is None."""
        value = self.value if math.isfinite(self.value) else None
        error = self.error if self.error is not None and math.isfinite(self.error) else None
        told = {"task": self.task, "name": self.name, "value": value, "error": error}
        return {**told, "questions": self.questions, "format": self.format}


@dataclass(frozen=True)
class SuiteFigures:
    """What a suite measured of a model."""

    suite: str  # as it was asked for: NAME or NAME:ARGUMENT
    figures: tuple[Figure, ...]
    version: str = ""  # of the suite
    limit: int | None = None
    max_new_tokens: int | None = None
    backend: str = "torch"

    def to_json(self) -> dict[str, Any]:
        """All of it, as `mmcli eval --json` prints it."""
        settings = {"limit": self.limit, "max_new_tokens": self.max_new_tokens, "backend": self.backend}
        figures = [each.to_json() for each in self.figures]
        return {"suite": self.suite, "version": self.version, **settings, "figures": figures}


def measure_suite(
    ref: ModelRef,
    suite: str,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    backend: str = "torch",
    device: str = "auto",
    report: Reporter | None = None,
) -> SuiteFigures:
    """Let a suite measure a model in its own way.

    Args:
        suite: NAME or NAME:ARGUMENT of an installed plugin's suite.
        limit: questions of each task, at most; None: all.
        max_new_tokens: of a reply, at most; None: as the suite has it.

    Raises:
        UserError: no such suite, one of questions, an argument that it does not take, or a limit below 1.
        MmcliError: the suite is broken.
    """
    for name, value in (("limit", limit), ("max-new-tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} leaves nothing to measure", "give 1 or more")
    found, (name, argument) = find_suite(suite), split_suite(suite)
    if not found.measure:
        raise UserError(f"the suite {name} is asked, not measured", "call evaluate of mmcli.api")
    function = load_function(found.measure, f'the suite "{name}"')
    request = SuiteRequest(
        model=ref,
        argument=argument,
        limit=limit,
        max_new_tokens=max_new_tokens,
        backend=backend,
        device=device,
        report=report or Silent(),
    )
    fix = "update or remove the package that it is of"
    with contained(f'the suite "{name}" failed', fix):
        figures = tuple(function(request))
    if not figures or not all(isinstance(each, Figure) for each in figures):
        raise MmcliError(f'the suite "{name}" gives no figures', fix)
    return SuiteFigures(suite, figures, found.version, limit, max_new_tokens, choose_backend(ref, backend))
