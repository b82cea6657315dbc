"""`mmcli runs list` and `show`: what has been trained here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.options import AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.run import Run

WIDE = 96  # columns from which the list tells when a run was started


def _row(run: Run) -> dict[str, Any]:
    from mmcli.housekeeping import disk_bytes
    from mmcli.report.curves import last_values, read_lines
    from mmcli.report.overview import parent_name, shown_metrics

    info = run.info()
    last = last_values(read_lines(run.metrics))
    return {
        **{metric.name: last.get(metric.name) for metric in shown_metrics(run)},
        "run": run.name,
        "stage": run.stage,
        "state": info["state"],
        "steps": info.get("steps_done"),
        "started": info.get("started"),
        "bytes": disk_bytes(run.path),
        "parent": parent_name(run),
        "has_model": (run.model / "config.json").is_file(),
    }


def _headlines(run: Run) -> tuple[str, str]:
    """The newest value of a run's first metric, and of its first held-out one, in words."""
    from mmcli.report.curves import last_values, read_lines
    from mmcli.report.overview import shown_metrics

    last, metrics = last_values(read_lines(run.metrics)), shown_metrics(run)
    known = [metric for metric in metrics if last.get(metric.name) is not None]
    texts = [[metric.text(last[metric.name]) for metric in known if metric.held_out is held] for held in (False, True)]
    return texts[0][0] if texts[0] else "", texts[1][0] if texts[1] else ""


def _short(parent: str | None, run: Run) -> str:
    """A parent as the list names it: its number where it is a run beside this one."""
    if parent is None:
        return ""
    return parent.split("-")[0] if (run.path.parent / parent).is_dir() else Path(parent).name


def _words(value: Any) -> str:
    """A value of run.json for a person: digests and numbers short, tables and lists without brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list):
        return ("; " if any(isinstance(each, Mapping) for each in value) else ", ").join(map(_words, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return re.sub(r"\b[0-9a-f]{40,}\b", lambda digest: digest[0][:12], str(value))


def list_(runs_dir: RunsDir = Path("runs"), json: AsJson = False) -> None:
    """List the runs, the oldest first. Example: mmcli runs list"""
    from mmcli.cli.console import err, out, print_json
    from mmcli.run import list_runs

    runs = list_runs(runs_dir)
    if json:
        print_json([_row(run) for run in runs])
        return
    if not runs:
        err().print(f"no runs in {runs_dir} yet; start one: mmcli pretrain", markup=False)
        return
    from rich.table import Table

    from mmcli.files import size
    from mmcli.housekeeping import disk_bytes
    from mmcli.report.overview import parent_name

    console = out()
    table = Table(box=None, pad_edge=False)
    wide = ("started",) if console.width >= WIDE else ()
    for name in ("run", "state", "steps", "training", "held-out", "size", "parent", *wide):
        table.add_column(name, overflow="fold", justify="right" if name in ("steps", "size") else "left")
    for run in runs:
        info = run.info()
        started = (info.get("started") or "")[:16].replace("T", " ")
        bytes_ = size(disk_bytes(run.path)).replace(" ", "\xa0")
        cells = [str(info.get("steps_done") or ""), *_headlines(run), bytes_, _short(parent_name(run), run)]
        table.add_row(run.name, info["state"], *cells, *([started] if wide else []))
    console.print(table)


def show(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")] = "latest",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Show one run: state, totals, what was chosen for you. Example: mmcli runs show 7"""
    from mmcli.cli.console import out, print_json
    from mmcli.files import size
    from mmcli.find import find_run
    from mmcli.housekeeping import disk_bytes
    from mmcli.report.curves import last_values, read_lines
    from mmcli.report.evaluations import read_evaluations
    from mmcli.report.overview import parent_name, shown_metrics

    found = find_run(run, runs_dir)
    info = {"run": found.name, "path": str(found.path), **found.info(), "bytes": disk_bytes(found.path)}
    info |= {"parent": parent} if (parent := parent_name(found)) is not None else {}
    chosen = {key: value for key, value in found.read_config("resolved.toml").items() if key != "model"}
    if json:
        evaluations = read_evaluations(found)
        metrics = last_values(read_lines(found.metrics))
        print_json({**info, "resolved": chosen, "metrics": metrics, "evaluations": evaluations})
        return
    info["bytes"] = size(info["bytes"])
    console = out()
    for key, value in info.items():
        if key not in ("sources", "pid", "metrics") and value is not None:
            console.print(f"[bold]{key:>18}[/bold]", end="  ")
            console.print(
                " ".join(value) if key == "command" and isinstance(value, list) else _words(value), markup=False
            )
    last = last_values(read_lines(found.metrics))
    for metric in shown_metrics(found):
        if last.get(metric.name) is not None:
            last[metric.name] = metric.number(last[metric.name])
    for title, values in (("chosen for you", chosen), ("last metrics", last)):
        if values:
            console.print(f"\n{title}", style="bold")
            for key, value in values.items():
                console.print(f"{key:>18}  {_words(value)}", markup=False)
    if evaluations := read_evaluations(found):
        console.print("\nevaluations", style="bold")
        for result in evaluations:
            _show_evaluation(found, result)


def _show_evaluation(run: Run, result: Mapping[str, Any]) -> None:
    """A result of `mmcli eval`: the score, then what it is made of."""
    from mmcli.cli.console import out
    from mmcli.report.evaluations import describe_evaluation

    words = describe_evaluation(run, result)
    out().print(f"{words['name']:>18}  {words['score']}", markup=False)
    for key in ("families", "notes"):
        if words[key]:
            out().print(f"{'':>18}  {words[key]}", markup=False)
