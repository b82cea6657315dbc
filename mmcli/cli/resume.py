"""`mmcli resume`: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.cli.options import HELP, AsJson, RunsDir

app = typer.Typer(context_settings=HELP)


@app.command()
def resume(
    run: Annotated[str | None, typer.Argument(help="Number, name or folder. Default: the newest unfinished.")] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Go on with a run that was stopped: same configuration, same numbers, from its newest whole checkpoint.

    Example: mmcli resume 7
    """
    from mmcli.cli.training import resume_run
    from mmcli.errors import UserError
    from mmcli.run import find_run, find_unfinished

    found = find_unfinished(runs_dir) if run is None else find_run(run, runs_dir)
    state = found.info()["state"]
    if state == "finished":
        raise UserError(f"{found.name} is finished", f"train on from it: mmcli {found.stage} --from {found.number}")
    if state == "running":
        raise UserError(f"{found.name} is still running", "wait for it, or stop it first")
    if not (found.path / "config.toml").is_file():
        raise UserError(f"{found.name} has no stored configuration", "start it again")
    resume_run(found, json=json)
