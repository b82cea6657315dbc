"""The checks of a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcli import plugins
from mmcli.config import Layer, leaves
from mmcli.runner import load_stage
from mmcli.stage import Stage
from mmcli.testing.checks import Check, attempt, check_loads, check_values, last_lines, run_python
from mmcli.testing.trainings import TOLERANCE, Trainings, difference, not_finite

HELP = """
import sys
from mmcli.cli import run
code = run(sys.argv[1:])
sys.exit("its help imports torch" if "torch" in sys.modules else code)
"""
COLUMNS = 80


def check_stage(name: str, values: Mapping[str, Any] | None = None, *, folder: Path) -> Iterator[Check]:
    """What every stage must do, one check after the other.

    Args:
        values: configuration keys of its trainings, such as {"data.sources": ["pairs.jsonl"], "gamma": 1.5}. Without
            data the first of text, conversations and preference pairs is used that the stage takes.
        folder: where runs and data are written.

    Raises:
        UserError: there is no such stage.
        MmcliError: it cannot be loaded.
    """
    stage = load_stage(name)
    yield check_loads(dataclasses.asdict(plugins.stages()[name]))
    yield attempt(f"its help fits {COLUMNS} columns", lambda: _help_problem(stage))
    trainings = Trainings(stage, dict(values or {}), folder)
    named = {"data.sources": ["demo"]} if _reads(stage) else {}
    base = [stage.layer, Layer("mmcli.testing", {**named, **trainings.values})]
    yield check_values(stage.config, base, own=lambda key: "." not in key)
    yield from check_trainings(trainings, refuses=_reads(stage))


def _reads(stage: Stage) -> bool:
    return any(leaf.key == "data.sources" for leaf in leaves(stage.config))


def _help_problem(stage: Stage) -> str | None:
    from rich.cells import cell_len

    done = run_python(["-P", "-c", HELP, stage.name, "--help"], COLUMNS=str(COLUMNS), NO_COLOR="1", TERM="dumb")
    if done.returncode:
        return last_lines(done.stderr)
    wide = [line for line in done.stdout.splitlines() if cell_len(line) > COLUMNS]
    if wide:
        return f"a line is {cell_len(wide[0])} wide: {wide[0].strip()}"
    if "\n" in stage.summary or not stage.summary.endswith("."):
        return f"its summary is no sentence of one line: {stage.summary!r}"
    if not stage.example.startswith(f"mmcli {stage.name}"):
        return f"its example is no command line of it: {stage.example!r}"
    bare = [leaf.key for leaf in leaves(stage.config) if not leaf.doc]
    return f"{bare[0]} has no help text: write it with option(default, text)" if bare else None


def check_trainings(trainings: Trainings, *, refuses: bool) -> Iterator[Check]:
    """What every training must do: a whole one, one that is resumed, one of two processes.

    Args:
        refuses: the stage reads data, so it must refuse data that is not there.
    """
    name = trainings.stage.name
    if refuses:
        yield attempt("data that is not there is refused in two lines", trainings.refused)
    trains = any(leaf.key == "train.steps" for leaf in leaves(trainings.stage.config))
    runs = []

    def whole() -> str | None:
        runs.append(trainings.whole())
        return not_finite(runs[0]) if trains else None

    check = attempt("trains, and every metric that it shows is finite" if trains else f"mmcli {name} runs", whole)
    yield check
    if not trains or check.problem:
        return
    yield attempt("resumes bit-exactly", lambda: difference(runs[0], trainings.resumed()))
    two = f"two processes have the losses of one ({TOLERANCE:g})"
    yield attempt(two, lambda: difference(runs[0], trainings.by_two(), tolerance=TOLERANCE))
