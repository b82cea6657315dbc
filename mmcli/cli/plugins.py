"""`mmcli plugins`: what is installed and can be loaded (`list`), what a plugin must do (`check`), a new one (`new`)."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.help import App
from mmcli.cli.options import AsJson
from mmcli.config import parse_set
from mmcli.errors import MmcliError, UserError, did_you_mean
from mmcli.plugins import Plugin, conflict, contained, installed, load
from mmcli.scaffold import KINDS, package_name, write_package
from mmcli.stage import Adapter

if TYPE_CHECKING:
    from mmcli.testing import Check

TIMEOUT_SECONDS = 30.0
MARK = "mmcli-plugin-state: "
CODE = "from mmcli.cli.plugins import print_state; print_state()"

app = App()


@app.callback()
def plugins() -> None:
    """List the installed stages, adapters, record kinds, suites and rewards; begin a new one, and check it."""


@app.command("list")
def list_(json: AsJson = False) -> None:
    """List every installed stage, adapter, record kind, suite and reward, and why one cannot be loaded.

    Example: mmcli plugins list
    """
    from mmcli.cli.console import out, print_json

    found = installed()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = list(pool.map(state, found))
    if json:
        names = ("name", "kind", "package", "version")
        pairs = zip(found, states, strict=True)
        print_json([{**{name: getattr(p, name) for name in names}, "state": text} for p, text in pairs])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("name", "kind", "package", "version", "state"):
        table.add_column(name, overflow="fold")
    for plugin, text in zip(found, states, strict=True):
        cells = (plugin.name, plugin.kind, plugin.package, plugin.version, text)
        table.add_row(*map(Text, cells), style="" if text == "ok" else "red")
    out().print(table)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the stage, adapter, suite or reward: a-z, 0-9, _.")],
    kind: Annotated[str, typer.Option(metavar="|".join(KINDS), help="What it adds.")] = "stage",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the package; default: mmcli-NAME, here.")
    ] = None,
) -> None:
    """Write an installable package with a plugin to start from, and its tests.

    Example: mmcli plugins new focal
    """
    folder = out or Path(package_name(name))
    for path in write_package(kind, name, folder):
        typer.echo(path)
    typer.echo(f"next: pip install -e {folder}; mmcli plugins check {name}", err=True)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of a stage, an adapter, a suite or a reward.")],
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A value for its trainings, such as data.sources=FILE; of an adapter, as --adapter-set; repeatable.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Check that a plugin does all that its kind must, a stage, an adapter and a suite with a tiny model.

    A stage and an adapter are trained for a few steps, stopped and resumed, and trained by two processes.
    The exit code is 1 where a check fails.

    Example: mmcli plugins check focal
    """
    from mmcli.cli.console import out, print_json
    from mmcli.testing.checks import CHECKED

    alone = name.partition("=")[0]  # of a reward: the model that scores follows
    named = [each for each in installed() if each.name == (alone if each.kind == "reward" else name)]
    found = [plugin for plugin in named if plugin.kind in CHECKED]
    if named and not found:
        raise UserError(f"there are no checks for a {named[0].kind}", "check its data: mmcli data check --help")
    if not found:
        others = [plugin.name for plugin in installed() if plugin.kind in CHECKED]
        raise UserError(f'there is no stage, adapter, suite or reward "{name}"', did_you_mean(name, others))
    rows: list[dict[str, Any]] = []
    for plugin in found:
        if not json:
            out().print(str(plugin), highlight=False, markup=False)
        with tempfile.TemporaryDirectory(prefix="mmcli-check-") as folder:
            for each in _checks(plugin, name, set or [], Path(folder)):
                rows.append({"kind": plugin.kind, "package": plugin.package, **dataclasses.asdict(each)})
                if not json:
                    _show_check(each)
    if json:
        print_json(rows)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _checks(plugin: Plugin, name: str, settings: list[str], folder: Path) -> Iterator[Check]:
    from mmcli.testing import check_adapter, check_reward, check_stage, check_suite

    if plugin.kind == "adapter":
        return check_adapter(plugin.name, settings, folder=folder)
    if plugin.kind in ("suite", "reward"):
        if settings:
            raise UserError(f"a {plugin.kind} has no values to set", "leave --set out")
        return check_suite(plugin.name, folder=folder) if plugin.kind == "suite" else check_reward(name)
    return check_stage(plugin.name, parse_set(settings).values, folder=folder)


def _show_check(check: Check) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from mmcli.cli.console import out

    word, style = ("failed", "red") if check.problem else ("passed", "green")
    out().print(Text.assemble("  ", (word, style), "  ", check.name))
    if check.problem:
        out().print(Padding(Text(check.problem), (0, 0, 0, 10)), soft_wrap=False)


def state(plugin: Plugin) -> str:
    """ "ok", or why a plugin cannot be loaded. It is loaded in a subprocess, so that a crash stays there."""
    clash = conflict(plugin)
    if clash is not None:
        return clash.cause
    command = [sys.executable, "-P", "-c", CODE, jsonlib.dumps(dataclasses.asdict(plugin))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {TIMEOUT_SECONDS:.0f} seconds"
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        if line.startswith(MARK):
            return str(jsonlib.loads(line.removeprefix(MARK)))
    return f"ended its process while loading (exit code {done.returncode})"


def print_state() -> None:
    """Entry point of the subprocess of `state`: load the plugin in argv[1] and print the outcome."""
    plugin = Plugin(**jsonlib.loads(sys.argv[1]))
    try:
        _try(plugin)
        text = "ok"
    except MmcliError as error:
        text = error.what.removeprefix(f"{plugin} ").removeprefix("cannot be loaded: ")
    sys.stdout.write(f"\n{MARK}{jsonlib.dumps(text)}\n")
    sys.stdout.flush()


def _try(plugin: Plugin) -> None:
    """Load a plugin as its command does, without importing the module that does the work (it may need torch)."""
    if plugin.kind == "adapter":
        _check_module(load(plugin, Adapter).build)
        return
    if plugin.kind == "record kind":
        from mmcli.data.records.kinds import RecordKind

        _check_module(load(plugin, RecordKind).encode)
        return
    if plugin.kind == "suite":
        from mmcli.evaluation.suites import Suite

        suite = load(plugin, Suite)
        for path in filter(None, (suite.items, suite.judge, suite.measure)):
            _check_module(path)
        return
    if plugin.kind == "reward":
        from mmcli.rewards import Reward

        _check_module(load(plugin, Reward).function)
        return
    from mmcli.cli.stages import options_app
    from mmcli.runner import load_stage

    stage = load_stage(plugin.name)
    options_app(stage, stage.summary, lambda *_, **__: None, with_run=True)
    _check_module(stage.run)


def _check_module(path: str) -> None:
    """Check that the module of "package.module:function" exists and compiles.

    Raises:
        MmcliError: it is missing or does not compile.
    """
    name = path.partition(":")[0]
    fix = "update or remove the package"
    with contained(f"its module {name} cannot be imported", fix):
        spec = find_spec(name)
        if spec is None:
            raise MmcliError(f"its module {name} is missing", fix)
        if spec.origin is not None and spec.origin.endswith(".py"):
            compile(Path(spec.origin).read_bytes(), spec.origin, "exec")
