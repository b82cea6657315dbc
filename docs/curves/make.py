"""The reference curves that `mmcli runs plot --reference` draws: real trainings of presets on the built-in corpus.

    python docs/curves/make.py [PRESET ...]     # by default all; base and moe take ten minutes each on two CPU cores

Each training begins as `mmcli pretrain --preset PRESET` does on a CPU, and is ended, saved, after so many steps. Kept
are means over stretches of steps, below a line that says what made them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmcli
from mmcli.errors import MmcliError
from mmcli.find import find_run
from mmcli.inputs import read_inputs
from mmcli.report.curves import is_number, read_lines
from mmcli.report.reference import REFERENCES, settings
from mmcli.run import RESOLVED, Run

POINTS = 240  # of a curve that is kept
KEPT = ("loss", "lr", "val_loss", "val_bits_per_byte")


@dataclass(frozen=True)
class Recipe:
    """How a curve is made: the steps after which it ends (None: an epoch), and values that the preset has not."""

    steps: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


OFTEN = {"data.val_tokens": 4096, "train.eval_every": 15}
RECIPES = {
    "tiny": Recipe(),
    "small": Recipe(100, {**OFTEN, "train.epochs": 5.0}),
    "base": Recipe(60, {**OFTEN, "train.epochs": 5.0}),
    "moe": Recipe(60, {**OFTEN, "train.epochs": 5.0}),
}


def train(preset: str, recipe: Recipe, runs_dir: Path) -> Run:
    """Train a preset for as many steps as the recipe has."""
    given = [part for key, value in recipe.values.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "mmcli", "pretrain", "--preset", preset, "--device", "cpu"]
    command += ["--runs-dir", str(runs_dir), *given]
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(MmcliError):  # there is no run yet
                run = find_run("latest:pretrain", runs_dir)
                if recipe.steps is not None and len(read_lines(run.metrics)) >= recipe.steps:
                    process.terminate()
                    process.wait()
    return find_run("latest:pretrain", runs_dir)


def keep(preset: str, recipe: Recipe, run: Run) -> None:
    """Write the curve of a run, and what made it."""
    lines = read_lines(run.metrics)[: recipe.steps]
    stretch = max(1, -(-len(lines) // POINTS))
    points = [_mean(lines[first : first + stretch]) for first in range(0, len(lines), stretch)]
    inputs = read_inputs(run)
    head = {
        "preset": preset,
        "mmcli": mmcli.__version__,
        "made": {key: run.read_config(RESOLVED)[key] for key in ("torch", "device", "precision", "steps", "init")},
        "given": recipe.values,
        "data": inputs["data"].key,
        "tokenizer": inputs["tokenizer"].key,
        "settings": settings(run),
    }
    text = "".join(json.dumps(each) + "\n" for each in (head, *points))
    (REFERENCES / f"{preset}.jsonl").write_text(text, encoding="utf-8")


def _mean(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """One line for several: their last place, and the mean of each value that was measured in them."""
    found = {"step": lines[-1]["step"], "tokens": lines[-1]["tokens"]}
    for key in KEPT:
        values = [line[key] for line in lines if is_number(line.get(key))]
        if values:
            found[key] = float(f"{sum(values) / len(values):.5g}")
    return found


def main() -> None:
    for preset in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            keep(preset, RECIPES[preset], train(preset, RECIPES[preset], Path(folder)))


if __name__ == "__main__":
    main()
