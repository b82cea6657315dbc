"""`mmcli runs`: what has been trained here."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir

app = App(help="List the runs, or show one.")


def _row(run: Any) -> dict[str, Any]:
    info = run.info()
    last = last_metrics(run)
    return {
        "run": run.name,
        "stage": run.stage,
        "state": info["state"],
        "steps": info.get("steps_done"),
        "loss": last.get("loss", last.get("dpo_loss")),
        "val_loss": last.get("val_loss", last.get("val_dpo_loss")),
        "started": info.get("started"),
        "has_model": (run.model / "config.json").is_file(),
    }


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

    rows = [_row(run) for run in list_runs(runs_dir)]
    if json:
        print_json(rows)
        return
    if not rows:
        err().print(f"no runs in {runs_dir} yet; start one: mmcli pretrain", markup=False)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "steps", "loss", "val loss", "started"):
        table.add_column(name, overflow="fold", justify="right" if name in ("steps", "loss", "val loss") else "left")
    for row in rows:
        numbers = ["" if row[k] is None else f"{row[k]:.3f}" for k in ("loss", "val_loss")]
        started = (row["started"] or "")[:16].replace("T", " ")
        table.add_row(row["run"], row["state"], str(row["steps"] or ""), *numbers, started)
    out().print(table)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")] = "latest",
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Show one run: state, totals, what was chosen for you. Example: mmcli runs show 7"""
    from mmcli.cli.console import out, print_json
    from mmcli.run import find_run

    found = find_run(run, runs_dir)
    info = {"run": found.name, "path": str(found.path), **found.info()}
    chosen = found.read_config("resolved.toml")
    if json:
        print_json({**info, "resolved": chosen, "metrics": last_metrics(found)})
        return
    console = out()
    for key, value in info.items():
        if key not in ("sources", "pid") and value is not None:
            shown = " ".join(value) if isinstance(value, list) else value
            console.print(f"[bold]{key:>18}[/bold]", end="  ")
            console.print(str(shown), markup=False)
    for title, values in (("chosen for you", chosen), ("last metrics", last_metrics(found))):
        if values:
            console.print(f"\n{title}", style="bold")
            for key, value in values.items():
                console.print(f"{key:>18}  {value}", markup=False)
