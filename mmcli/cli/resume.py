"""`mmcli resume`: resume a stopped run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AllowChange, AsJson, Nproc, RunsDir

app = App()


@app.command()
def resume(
    run: Annotated[str | None, typer.Argument(help="Number, name or folder. Default: the newest unfinished.")] = None,
    allow_change: AllowChange = None,
    lr_scale: Annotated[
        float | None,
        typer.Option(help="Multiply the learning rate from now on, such as 0.5 after a non-finite loss.", metavar="X"),
    ] = None,
    nproc: Nproc = None,
    shard: Annotated[
        bool | None,
        typer.Option("--shard/--no-shard", help="Split weights between the processes from now on, or no longer."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Resume a stopped run: same configuration, same numbers, from its latest valid checkpoint.

    A run whose data or model was changed since it began is refused, unless --allow-change names what may differ.

    Example: mmcli resume 7; mmcli resume 7 --lr-scale 0.5
    """
    from mmcli import runner
    from mmcli.cli.console import reporter
    from mmcli.cli.training import launch_ranks, print_run, tell_ending
    from mmcli.find import find_run, find_unfinished

    launch_ranks(nproc)
    found = find_unfinished(runs_dir) if run is None else find_run(run, runs_dir)
    report = reporter(found.metrics)
    resumed = runner.resume(found, report, allow=allow_change or [], lr_scale=lr_scale, shard=shard)
    tell_ending(resumed, report)
    if json:
        print_run(resumed)
