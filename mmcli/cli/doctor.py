"""`mmcli doctor`: what a training would meet on this machine, and how to fix what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson, RunsDir
from mmcli.doctor import Finding, examine
from mmcli.plugins import installed

app = App()
STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


@app.command()
def doctor(json: AsJson = False, runs_dir: RunsDir = Path("runs")) -> None:
    """Check this machine for training: versions, device, speed, memory, disk, load, plugins, runs.

    Each line is ok, a warning (slower, or something may be lost) or an error (training is impossible), the latter two
    with what to do. The exit code is 1 if there is an error, else 0.

    Example: mmcli doctor
    """
    from mmcli.cli.console import print_json

    found: list[Finding] = []
    for finding in _findings(runs_dir):
        found.append(finding)
        if not json:
            _print(finding)
    failed = any(finding.state == "error" for finding in found)
    if json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in found]})
    if failed:
        raise typer.Exit(1)


def _findings(runs_dir: Path) -> Iterator[Finding]:
    yield from examine(runs_dir)
    yield from _plugins()


def _plugins() -> Iterator[Finding]:
    """The plugins, each loaded in a process of its own."""
    from mmcli.cli.plugins import state

    others = [plugin for plugin in installed() if not plugin.built_in]
    states = [(plugin, state(plugin)) for plugin in others]
    names = ", ".join(plugin.name for plugin, text in states if text == "ok")
    yield Finding("plugins", "ok", names or "none")
    for plugin, text in states:
        if text != "ok":
            fix = f"update or remove it: pip install -U {plugin.package}, or pip uninstall {plugin.package}"
            yield Finding("plugins", "warning", f"{plugin}: {text}", fix)


def _print(finding: Finding) -> None:
    from rich.table import Table
    from rich.text import Text

    from mmcli.cli.console import escape_control, out

    grid = Table.grid(padding=(0, 2))
    for width in (len("warning"), len("matrix rate")):
        grid.add_column(width=width)
    grid.add_column(overflow="fold")
    text = Text(escape_control(finding.text))
    if finding.fix:
        text.append("\nfix: ", "bold").append(escape_control(finding.fix))
    grid.add_row(Text(finding.state, STYLES[finding.state]), finding.name, text)
    out().print(grid)
