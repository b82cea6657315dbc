"""`mmcli config show STAGE`: every value of a stage's configuration and the layer it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from mmcli.cli.help import App, Group
from mmcli.config import Layer, Resolved, leaves, resolve, to_tables
from mmcli.stage import Stage


class StageGroup(Group):
    """A group with one command for each stage, taking that stage's own options."""

    def list_commands(self, ctx: Any) -> list[str]:
        from mmcli.cli.stages import stage_entries

        return [entry.name for entry in stage_entries()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from mmcli.cli.stages import stage_summary

        summary = stage_summary(cmd_name)
        return None if summary is None else TyperCommand(cmd_name, help=summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from mmcli.cli.stages import options_app
        from mmcli.runner import load_stage

        stage = load_stage(args[0])
        has_preset = any(leaf.key.startswith("model.") for leaf in leaves(stage.config))
        example = f"mmcli config show {stage.name}" + (" --preset small" if has_preset else "")
        text = f"Show the configuration that `mmcli {stage.name}` would use.\n\nExample: {example}"
        command = typer.main.get_command(options_app(stage, text, show_config, with_run=False))
        command.name = args[0]
        return args[0], command, args[1:]


app = App()
show = App(cls=StageGroup)


@app.callback()
def config() -> None:
    """Show a stage's configuration and where each value comes from."""


@show.callback()
def show_callback() -> None:
    """Show each value of a stage's configuration and the layer it comes from.

    Example: mmcli config show pretrain --preset small --set optim.lr=3e-4
    """


app.add_typer(show, name="show")


def show_config(
    stage: Stage,
    *,
    flags: Sequence[Layer],
    config: Path | None,
    set: Sequence[str] | None,
    json: bool,
    runs_dir: Path,
    preset: str | None = None,
) -> None:
    """Print the configuration that this command line gives."""
    from mmcli.cli.console import out, print_json
    from mmcli.config import parse_set
    from mmcli.runner import stage_layers

    own = [parse_set(set or []), *flags]
    layers, _ = stage_layers(stage, own, runs_dir=runs_dir, preset=preset, config_file=config)
    resolved: Resolved[Any] = resolve(stage.config, layers)
    if json:
        print_json({"config": to_tables(resolved.config), "sources": dict(resolved.sources)})
        return
    from rich.table import Table

    tables = to_tables(resolved.config)
    table = Table(box=None, pad_edge=False)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for leaf in leaves(stage.config):
        value: Any = tables
        for part in leaf.key.split("."):
            value = value[part]
        source = resolved.sources[leaf.key]
        table.add_row(leaf.key, _toml(value), source, style="dim" if source == "default" else "")
    out().print(table)


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip().replace("\n", " ")
