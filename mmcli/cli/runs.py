"""`mmcli runs`: what has been trained here."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir
from mmcli.stage import Metric

if TYPE_CHECKING:
    from mmcli.verify import Verified

app = App(help="List the runs, show one, or verify their files.")


def _row(run: Any) -> dict[str, Any]:
    info = run.info()
    last = last_metrics(run)
    return {
        **{metric.name: last.get(metric.name) for metric in shown_metrics(info)},
        "run": run.name,
        "stage": run.stage,
        "state": info["state"],
        "steps": info.get("steps_done"),
        "started": info.get("started"),
        "has_model": (run.model / "config.json").is_file(),
    }


def shown_metrics(info: dict[str, Any]) -> list[Metric]:
    """The metrics that a run declared to be shown, the headline first; none for a run without training."""
    return [Metric(**each) for each in info.get("metrics", [])]


def _headlines(run: Any) -> tuple[str, str]:
    """The newest value of a run's first metric, and of its first held-out one, in words."""
    last, metrics = last_metrics(run), shown_metrics(run.info())
    known = [metric for metric in metrics if last.get(metric.name) is not None]
    texts = [[metric.text(last[metric.name]) for metric in known if metric.held_out is held] for held in (False, True)]
    return texts[0][0] if texts[0] else "", texts[1][0] if texts[1] else ""


def last_metrics(run: Any) -> dict[str, Any]:
    """The newest value of each metric of a run."""
    values: dict[str, Any] = {}
    if run.metrics.is_file():
        with open(run.metrics, encoding="utf-8") as file:
            for line in file:
                try:
                    values.update(jsonlib.loads(line))
                except ValueError:  # the half-written last line of a killed run
                    continue
    return values


@app.command("list")
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

    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "steps", "training", "held-out", "started"):
        table.add_column(name, overflow="fold", justify="right" if name == "steps" else "left")
    for run in runs:
        info = run.info()
        started = (info.get("started") or "")[:16].replace("T", " ")
        table.add_row(run.name, info["state"], str(info.get("steps_done") or ""), *_headlines(run), started)
    out().print(table)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")] = "latest",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Show one run: state, totals, what was chosen for you. Example: mmcli runs show 7"""
    from mmcli.cli.console import out, print_json
    from mmcli.find import find_run

    found = find_run(run, runs_dir)
    info = {"run": found.name, "path": str(found.path), **found.info()}
    chosen = {key: value for key, value in found.read_config("resolved.toml").items() if key != "model"}
    if json:
        print_json({**info, "resolved": chosen, "metrics": last_metrics(found)})
        return
    console = out()
    for key, value in info.items():
        if key not in ("sources", "pid", "metrics") and value is not None:
            shown = " ".join(value) if isinstance(value, list) else value
            console.print(f"[bold]{key:>18}[/bold]", end="  ")
            console.print(str(shown), markup=False)
    last = last_metrics(found)
    for metric in shown_metrics(info):
        if last.get(metric.name) is not None:
            last[metric.name] = metric.number(last[metric.name])
    for title, values in (("chosen for you", chosen), ("last metrics", last)):
        if values:
            console.print(f"\n{title}", style="bold")
            for key, value in values.items():
                console.print(f"{key:>18}  {value}", markup=False)


@app.command()
def verify(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Number, name or folder; default: all.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Check every file of the runs and of their token caches for damage.

    Model, exports, tokenizer and checkpoints are compared with their SHA-256 manifests, caches with their checksums.
    Temporary folders of processes that died are removed. The exit code is 1 if anything is damaged, 2 if that was
    asked for by name.

    Example: mmcli runs verify; mmcli runs verify 7
    """
    from mmcli.cli.console import print_error, print_json
    from mmcli.errors import MmcliError
    from mmcli.find import find_run
    from mmcli.run import list_runs
    from mmcli.verify import list_caches, verify_cache, verify_run

    named = [find_run(ref, runs_dir) for ref in runs or []]
    found = [verify_run(run) for run in named or list_runs(runs_dir)]
    caches = [cache for run in named for cache in list_caches(run.path.parent, run)] if named else list_caches(runs_dir)
    found += [verify_cache(cache) for cache in dict.fromkeys(caches)]
    if json:
        print_json([_verified_row(each) for each in found])
    else:
        _print_verified(found)
    faults = [fault for each in found for fault in each.faults]
    for fault in faults:
        print_error(MmcliError(fault.what, fault.fix))
    if faults:
        raise typer.Exit(2 if named else 1)


def _verified_row(verified: Verified) -> dict[str, Any]:
    faults = [asdict(fault) for fault in verified.faults]
    removed = [str(path) for path in verified.removed]
    row = {"name": verified.name, "files": verified.files, "bytes": verified.bytes}
    return {**row, "whole": not faults, "faults": faults, "removed": removed}


def _print_verified(found: list[Verified]) -> None:
    from rich.table import Table

    from mmcli.cli.console import amount, err, out

    table = Table(box=None, pad_edge=False)
    for name in ("name", "files", "bytes", "state"):
        table.add_column(name, overflow="fold", justify="right" if name in ("files", "bytes") else "left")
    for each in found:
        state = f"{len(each.faults)} damaged" if each.faults else "ok"
        table.add_row(each.name, str(each.files), amount(each.bytes), state)
    out().print(table)
    for each in found:
        for path in each.removed:
            err().print(f"removed {path}, which a killed process had left", markup=False)
