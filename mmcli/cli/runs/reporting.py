"""`mmcli runs report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.cli.options import AsJson, RunsDir


def report(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")] = "latest",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: report.html in the run folder.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Write report.html of a run: curves, samples, configuration, data, lineage, in one file.

    Every training writes it when it ends; this does it anew, also for a run that is still running.

    Example: mmcli runs report 7
    """
    from mmcli.cli.console import out, print_json
    from mmcli.errors import UserError
    from mmcli.find import find_run
    from mmcli.report.page import write_report

    found = find_run(run, runs_dir)
    if output is not None and not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}", "make it first, or give another --output")
    path = write_report(found, output)
    if json:
        print_json({"run": found.name, "report": str(path)})
    else:
        out().print(str(path), markup=False)
