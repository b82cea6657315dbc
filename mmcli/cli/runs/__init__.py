"""`mmcli runs`: what has been trained here."""

from __future__ import annotations

from mmcli.cli.help import App
from mmcli.cli.runs.changing import prune, remove, rename
from mmcli.cli.runs.curves import compare, plot
from mmcli.cli.runs.listing import list_, show
from mmcli.cli.runs.reporting import report
from mmcli.cli.runs.verifying import verify

app = App(help="List, compare, plot, rename, remove or verify runs.")
app.command("list")(list_)
for command in (show, plot, compare, report, rename, remove, prune, verify):
    app.command()(command)
