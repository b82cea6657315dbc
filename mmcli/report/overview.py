"""Several runs beside each other: their curves in one chart, and what sets two apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmcli.errors import UserError, did_you_mean
from mmcli.inputs import flat
from mmcli.report.curves import Axis, Curve, curve, is_number, last_values, metric_names, read_lines, smoothed
from mmcli.report.scale import Chart
from mmcli.run import Run
from mmcli.stage import Metric

TOTALS = ("state", "steps_done", "tokens", "elapsed_seconds")


def shown_metrics(run: Run) -> list[Metric]:
    """The metrics that a run declared to be shown, the headline first; none for a run without training."""
    found = []
    for each in run.info().get("metrics", []):
        try:
            found.append(Metric(**each))
        except (TypeError, ValueError):  # of another version, or edited
            continue
    return found


def parent_name(run: Run) -> str | None:
    """The run, or the model folder, that a run started from; one that is gone by the name that it had."""
    try:
        parent = run.parent
    except UserError:  # its resolved.toml is damaged: runs verify says so
        parent = None
    return parent.name if parent is not None else run.info().get("parent")


def plot_runs(
    runs: Sequence[Run], metric: str | None = None, axis: Axis = "steps", *, below: Sequence[Curve] = ()
) -> Chart:
    """The chart of some runs: of each the smoothed headline, and its held-out values as points.

    Args:
        metric: a key of metrics.jsonl to draw instead.
        below: curves that are drawn first, the runs' own over them.

    Raises:
        UserError: a run has no such values.
    """
    curves = [replace(each, series=len(runs) + number) for number, each in enumerate(below)]
    format_spec = ""
    for number, run in enumerate(runs):
        lines = read_lines(run.metrics)
        names = metric_names(lines)
        if not names:
            raise UserError(f"{run.name} has no metrics to plot", "name a run that was trained; see: mmcli runs list")
        declared = {each.name: each for each in shown_metrics(run)}
        headline = metric or next((name for name in declared if name in names), names[0])
        if headline not in names:
            raise UserError(f'{run.name} has no metric "{headline}"', did_you_mean(headline, names))
        held_out = next((name for name in declared if name.startswith("val_") and name in names), None)
        for name in (headline,) if metric is not None or held_out is None else (headline, held_out):
            dots = name.startswith("val_")
            last = last_values(lines).get(name)
            shown = declared.get(name, Metric(name))
            label = f"{run.name} {shown.title if not dots else shown.label or name}"
            whole = curve(lines, name, axis, f"{label} {shown.number(last)}" if is_number(last) else label)
            curves.append(replace(whole if dots else smoothed(whole), series=number, dots=dots))
            format_spec = format_spec or (shown.format if shown.format.endswith("%") else "")
    return Chart(tuple(curves), axis, format=format_spec)


@dataclass(frozen=True)
class Difference:
    """A value that two runs do not share; None where one has none."""

    key: str
    values: tuple[Any, Any]


@dataclass(frozen=True)
class Comparison:
    """Two runs: how their configurations differ, and what came out of each."""

    runs: tuple[Run, Run]
    config: tuple[Difference, ...]
    results: tuple[Difference, ...]  # equal ones too


def compare_runs(one: Run, other: Run) -> Comparison:
    """What sets two runs apart.

    Raises:
        UserError: a configuration is damaged.
    """
    tables = [{"stage": run.stage, "from": parent_name(run), **flat(run.read_config())} for run in (one, other)]
    shapes = [flat({"model": run.read_config("resolved.toml").get("model", {})}) for run in (one, other)]
    before, after = ({**table, **shape} for table, shape in zip(tables, shapes, strict=True))
    keys = [*before, *(key for key in after if key not in before)]
    config = [Difference(key, (before.get(key), after.get(key))) for key in keys if before.get(key) != after.get(key)]
    results = [_results(run) for run in (one, other)]
    names = [*results[0], *(name for name in results[1] if name not in results[0])]
    both = tuple(Difference(name, (results[0].get(name), results[1].get(name))) for name in names)
    return Comparison((one, other), tuple(d for d in config if d.key != "train.start_from"), both)


def _results(run: Run) -> dict[str, Any]:
    info, last = run.info(), last_values(read_lines(run.metrics))
    metrics = {each.name: last[each.name] for each in shown_metrics(run) if last.get(each.name) is not None}
    speed = {"tokens_per_second": last["tokens_per_second"]} if last.get("tokens_per_second") is not None else {}
    return {**{name: info.get(name) for name in TOTALS if info.get(name) is not None}, **metrics, **speed}
