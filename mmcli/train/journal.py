"""What a training leaves to read: metrics.jsonl, samples.jsonl, and what `--log` asked for besides."""

from __future__ import annotations

import json
import math
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mmcli.config import to_tables
from mmcli.inputs import flat
from mmcli.run import RESOLVED, SAMPLES
from mmcli.stage import StageContext
from mmcli.train.loggers import Background, LogRun, MainThreadOnly, missing_logger
from mmcli.train.metrics import MetricsFile


class Journal:
    """The values of each step and the texts of the model, cut back to the checkpoint on resume."""

    def __init__(self, context: StageContext, *, from_step: int, loggers: Sequence[str] = ()) -> None:
        """Go on from `from_step`, the number of updates done. Where another process writes the run, nothing is kept."""
        run = context.run
        loggers = loggers if run.is_writable else ()
        known = _last_step(run.metrics.read_bytes()) if loggers and run.metrics.is_file() else -1
        self._metrics = MetricsFile(run.metrics if run.is_writable else None, from_step=from_step)
        samples = run.path / SAMPLES if run.is_writable else None
        self._samples = MetricsFile(samples, from_step=from_step + 1)  # of after the update
        self._known = known  # a tracker has the steps up to here, unless it takes them back
        self._stdout = sys.stdout
        if loggers:
            sys.stdout = MainThreadOnly(sys.stdout)
        self._loggers = _open(context, from_step, loggers)

    def write(self, values: Mapping[str, Any]) -> str | None:
        """Append a line to metrics.jsonl (see `MetricsFile.write`)."""
        problem = self._metrics.write(values)
        step, numbers = int(values["step"]), scalars(values)
        for logger in self._loggers:
            if step > self._known or logger.name == "tensorboard":
                logger.put(lambda to: to.log(step, numbers))
        return problem

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a text that the model wrote after so many updates."""
        self._samples.write({"step": step, "prompt": prompt, "text": text})
        of = max(0, step - 1)  # the step that was just done, whose values come next: trackers count upwards
        for logger in self._loggers:
            if of > self._known or logger.name == "tensorboard":
                logger.put(lambda to: to.sample(of, prompt, text))

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        for logger in self._loggers:
            logger.close()
        sys.stdout = self._stdout


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values of a step; those of a list one by one, as `expert_load/0`."""
    found: dict[str, float] = {}
    for name, value in values.items():
        items = {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
        for key, each in items.items():
            if isinstance(each, int | float) and math.isfinite(each) and key != "step":
                found[key] = float(each)
    return found


def _open(context: StageContext, from_step: int, names: Sequence[str]) -> list[Background]:
    """The trackers, under the identity that run.json keeps for them."""
    if not names:
        return []
    run = context.run
    kept = run.info().get("log")
    if not isinstance(kept, dict) or not {"id", "name"} <= kept.keys():
        number = uuid.uuid4().hex[:21]
        kept = {"id": number, "name": f"{run.name}-{number[:4]}"}  # runs folders number alike
        run.update(log=kept)
    config = flat({**to_tables(context.resolved.config), "resolved": {"model": run.read_config(RESOLVED).get("model")}})
    log_run = LogRun(run.path, str(kept["name"]), str(kept["id"]), config, from_step)
    found = []
    for name in names:
        missing = missing_logger(name)
        if missing is None:
            found.append(Background(name, log_run, context.report))
        else:
            context.report.warn(f"{missing.what}; the training goes on without it ({missing.fix})")
    return found


def _last_step(text: bytes) -> int:
    """The largest step of metrics.jsonl; -1 without any."""
    last = -1
    for line in text.splitlines():
        try:
            last = max(last, int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):
            continue
    return last
