"""`mmcli plugins list`: the installed stages, adapters, record kinds and suites, and whether each can be loaded."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from mmcli.cli.help import App
from mmcli.cli.options import AsJson
from mmcli.errors import MmcliError
from mmcli.plugins import Plugin, conflict, contained, installed, load
from mmcli.stage import Adapter

TIMEOUT_SECONDS = 30.0
MARK = "mmcli-plugin-state: "
CODE = "from mmcli.cli.plugins import print_state; print_state()"

app = App()


@app.callback()
def plugins() -> None:
    """List the installed stages, adapters, record kinds and suites."""


@app.command("list")
def list_(json: AsJson = False) -> None:
    """List every installed stage, adapter, record kind and suite, and why one cannot be loaded.

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
        _check_module(suite.items)
        _check_module(suite.judge)
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
