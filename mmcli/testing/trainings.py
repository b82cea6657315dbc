"""Short trainings of a stage: one that is never stopped, one that is stopped and resumed, one of two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from mmcli import runner
from mmcli.config import Layer, Typed, leaves, merge_layers
from mmcli.errors import Interrupted, MmcliError, UserError
from mmcli.run import Run, list_runs
from mmcli.stage import Metric, Silent, Stage
from mmcli.testing.checks import last_lines, run_python, two_lines
from mmcli.testing.tiny import SHAPE, VOCABULARY, tiny_corpus

STEPS, STOPPED_AT = 4, 3  # the checkpoint before that is of step 2
TOLERANCE = 1e-5  # of two processes against one
QUICK = {
    **{f"model.{name}": value for name, value in SHAPE.items()},
    "model.vocab_size": VOCABULARY,
    "data.seq_len": 256,
    "data.val_fraction": 0.1,
    "train.steps": STEPS,
    "train.batch_size": 4,
    "train.checkpoint_every": 2,
    "train.eval_every": 2,
    "train.sample_every": 2,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.compile": "off",
}
WEIGHTS = ("model/model.safetensors", "adapter/adapter_model.safetensors")


class _StopsAt(Silent):
    """A reporter that presses Ctrl-C."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        if values["step"] == self._step:
            raise KeyboardInterrupt


@dataclass
class Trainings:
    """Trainings of a stage with the same values, in runs of their own.

    Attributes:
        values: what differs from `QUICK`. Without `data.sources` the tiny corpus is used, of the first kind that the
            stage takes.
    """

    stage: Stage
    values: Mapping[str, Any]
    folder: Path
    used: dict[str, Any] = field(default_factory=dict, init=False)  # all values of the whole run

    @property
    def runs_dir(self) -> Path:
        return self.folder / "runs"

    def whole(self) -> Run:
        """The run that is never stopped; the model that it starts from is trained before.

        Raises:
            MmcliError: what the training raises; where no data of the tiny corpus is taken, UserError.
        """
        values = self._all_values()
        self.used = values
        if "data.sources" in self.values or "data.sources" not in self._keys():
            return self._start(values)
        refusals = {}
        for kind, file in tiny_corpus(self.folder / "corpus").items():
            self.used = {**values, "data.sources": [str(file)]}
            try:
                return self._start(self.used)
            except UserError as error:
                refusals[kind] = error.what.replace(f"{file.parent}/", "")
        what = "no data of the tiny corpus is taken: " + "; ".join(f"{kind}: {why}" for kind, why in refusals.items())
        raise UserError(what, "name some: data.sources=FILE")

    def resumed(self) -> Run:
        """The run that is stopped after a checkpoint, and resumed.

        Raises:
            MmcliError: it is not stopped by Ctrl-C, or cannot be resumed.
        """
        try:
            self._start(self.used, _StopsAt(STOPPED_AT))
        except Interrupted:
            return runner.resume(list_runs(self.runs_dir)[-1], Silent())
        raise MmcliError("it goes on after Ctrl-C", "let KeyboardInterrupt through")

    def by_two(self) -> Run:
        """The run of two processes.

        Raises:
            MmcliError: it fails.
        """
        file = self.folder / "two.toml"
        typed = {key: value for key, value in self.used.items() if isinstance(value, Typed)}
        file.write_text(tomli_w.dumps({k: v for k, v in self.used.items() if k not in typed}), encoding="utf-8")
        options = ["--config", str(file), "--runs-dir", str(self.runs_dir), "--nproc", "2"]
        options += [word for key, value in typed.items() for word in ("--set", f"{key}={value}")]
        done = run_python(["-m", "mmcli", self.stage.name, *options], OMP_NUM_THREADS="1")
        if done.returncode:
            raise MmcliError(last_lines(done.stderr), f"look for yourself: mmcli {self.stage.name} --nproc 2")
        return list_runs(self.runs_dir)[-1]

    def refused(self) -> str | None:
        """Why data that is not there is not refused in two lines, without a run left behind; None: it is."""
        values = {**self._all_values(), "data.sources": ["no/such/file.jsonl"]}
        before = len(list_runs(self.runs_dir))
        if (problem := two_lines(lambda: self._start(values))) is not None:
            return problem
        return "a run folder is left behind" if len(list_runs(self.runs_dir)) > before else None

    def _keys(self) -> set[str]:
        return {leaf.key for leaf in leaves(self.stage.config)}

    def _all_values(self) -> dict[str, Any]:
        """`QUICK`, as far as the stage has such keys, and the values; `latest:STAGE` is a run, made if missing."""
        keys = self._keys()
        found = {key: value for key, value in QUICK.items() if key in keys} | dict(self.values)
        merged, _ = merge_layers(self.stage.config, [self.stage.layer, Layer("mmcli.testing", self.values)])
        start_from = merged.get("train.start_from")
        if start_from is None:
            return found
        found = {key: value for key, value in found.items() if not key.startswith("model.") or key in self.values}
        name, _, wanted = start_from.partition(":")
        return {**found, "train.start_from": self._parent(wanted or "pretrain").name} if name == "latest" else found

    def _parent(self, stage: str) -> Run:
        """A run of this stage."""
        done = [run for run in list_runs(self.runs_dir) if run.stage == stage]
        return done[0] if done else Trainings(runner.load_stage(stage), {}, self.folder).whole()

    def _start(self, values: Mapping[str, Any], report: Silent | None = None) -> Run:
        return runner.start(self.stage, [Layer("mmcli.testing", values)], runs_dir=self.runs_dir, report=report)


def difference(run: Run, other: Run, *, tolerance: float = 0.0) -> str | None:
    """The first value that another run logged otherwise, in words; None: there is none.

    Args:
        tolerance: absolute up to 1, relative above. 0: the weights at the end are the same bytes, too.
    """
    for mine, theirs in zip(_lines(run), _lines(other), strict=False):
        for name in [metric["name"] for metric in run.info()["metrics"]]:
            pairs = list(zip(_numbers(mine.get(name)), _numbers(theirs.get(name)), strict=False))
            if (mine.get(name) is None) != (theirs.get(name) is None) or not all(
                math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs
            ):
                return f"step {mine['step']}: {name} is {theirs.get(name)} instead of {mine.get(name)}"
    if len(_lines(run)) != len(_lines(other)):
        return f"{len(_lines(other))} lines of metrics instead of {len(_lines(run))}"
    if tolerance:
        return None
    for part in WEIGHTS:
        one, two = run.path / part, other.path / part
        if one.is_file() and (not two.is_file() or one.read_bytes() != two.read_bytes()):
            return f"{part} has other bytes"
    return None


def _lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def _numbers(value: Any) -> Iterator[float]:
    yield from () if value is None else map(float, value if isinstance(value, list) else [value])


def not_finite(run: Run) -> str | None:
    """The first shown value of a run that is missing in every line, or not finite; None: there is none."""
    lines = _lines(run)
    for metric in run.info()["metrics"]:
        found = [number for line in lines for number in _numbers(line.get(metric["name"]))]
        if not found and not Metric(**metric).held_out:
            return f"the metric {metric['name']} is never logged"
        if not all(map(math.isfinite, found)):
            return f"the metric {metric['name']} is not finite"
    return None
