"""`mmcli presets`: the built-in model shapes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from mmcli.cli.console import print_json
from mmcli.cli.help import App
from mmcli.cli.options import AsJson
from mmcli.cli.params import resolve_model
from mmcli.config import preset_about, preset_chain, preset_names, to_tables

app = App(help="List the built-in model shapes, or show one.")


@app.command("list")
def list_presets(as_json: AsJson = False) -> None:
    """List every preset with its exact parameter count.

    Example: mmcli presets list
    """
    rows = [_summary(name) for name in preset_names()]
    rows.sort(key=lambda row: row["total"])
    if as_json:
        print_json({"presets": rows})
        return
    template = "{:<14} {:<31} {:>13} {:>13}"
    lines = [template.format("name", "title", "parameters", "active")]
    lines += [template.format(row["name"], row["title"], f"{row['total']:,}", f"{row['active']:,}") for row in rows]
    typer.echo("\n".join([*lines, "", "See also: mmcli presets show NAME; mmcli params count --preset NAME"]))


def _summary(name: str) -> dict[str, Any]:
    from mmcli.model.count import count_parameters

    counted = count_parameters(resolve_model(name).config.model)
    about = preset_about(name)
    documented = about.get("documented")
    return {
        "name": name,
        "title": about.get("title", name),
        "documented": documented,
        "total": counted.total,
        "active": counted.active,
    }


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a preset, such as small.")],
    as_json: AsJson = False,
) -> None:
    """Show one preset in full, as TOML, with the source of each value.

    Example: mmcli presets show small
    """
    resolved = resolve_model(name)
    about = preset_about(name)
    stages = _stage_values(name)
    if as_json:
        sources = {key.removeprefix("model."): source for key, source in resolved.sources.items()}
        model = dataclasses.asdict(resolved.config.model)
        print_json({"name": name, "about": about, "model": model, "sources": sources, "stages": stages})
        return
    lines = [f"# {name}: {about.get('title', name)}", "", "[model]"]
    for key, value in to_tables(resolved.config.model).items():
        lines.append(f"{f'{key} = {_toml(value)}':<32}# {resolved.sources[f'model.{key}']}")
    for table, values in stages.items():
        lines += ["", f"[{table}]"]
        lines += [f"{f'{key} = {_toml(value)}':<32}# {source}" for key, (value, source) in values.items()]
    typer.echo("\n".join(lines))


def _stage_values(name: str) -> dict[str, dict[str, tuple[Any, str]]]:
    """Stage values that the preset sets: {"pretrain.optim": {"lr": (5e-4, "preset small")}}."""
    found: dict[str, dict[str, tuple[Any, str]]] = {}
    for preset, tables in preset_chain(name):
        for stage, parts in tables.items():
            if stage in ("about", "model", "extends"):
                continue
            for part, values in _tables(stage, parts):
                table = found.setdefault(part, {})
                table |= {key: (value, f"preset {preset}") for key, value in values.items()}
    return found


def _tables(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, plain values) of a table and of the tables in it."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if plain:
        yield name, plain
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _tables(f"{name}.{key}", value)


def _toml(value: Any) -> str:
    """A plain value as TOML: JSON writes booleans, numbers and texts the same way."""
    return json.dumps(value, ensure_ascii=False)
