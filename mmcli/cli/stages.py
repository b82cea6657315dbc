"""Stage commands, made from the fields of each stage's config. Entry points are loaded only when invoked."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcli.cli.options import HELP, AsJson, RunsDir
from mmcli.config import Layer, Leaf, Typed, describe_type, leaves
from mmcli.errors import MmcliError, UserError
from mmcli.stage import API_VERSION, ENTRY_POINT_GROUP, Stage

OUR_PACKAGE = "mmcli"
BUILT_IN_SUMMARIES = {
    "pretrain": "Train a model from zero on plain text.",
}


@dataclass(frozen=True)
class StageEntry:
    """One entry point as the metadata tell it; nothing of the package is loaded."""

    name: str
    package: str
    version: str
    summary: str
    point: EntryPoint

    @property
    def built_in(self) -> bool:
        return self.package == OUR_PACKAGE


@functools.cache
def all_stage_entries() -> tuple[StageEntry, ...]:
    """Every installed stage, the built-ins first, clashes included."""
    found = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        package = point.dist.name if point.dist else "unknown"
        built_in = re.sub(r"[-_.]+", "-", package).lower() == OUR_PACKAGE
        summary = BUILT_IN_SUMMARIES.get(point.name, "") if built_in else f"(from the package {package})"
        version = point.dist.version if point.dist else ""
        found.append(StageEntry(point.name, OUR_PACKAGE if built_in else package, version, summary, point))
    order = list(BUILT_IN_SUMMARIES)
    found.sort(key=lambda e: (not e.built_in, order.index(e.name) if e.name in order else 99, e.name, e.package))
    unique = {(entry.name, entry.package): entry for entry in found}
    return tuple(unique.values())


def stage_entries() -> list[StageEntry]:
    """The stages that `mmcli --help` lists: one a name, none that would shadow a built-in command."""
    by_name: dict[str, StageEntry] = {}
    for entry in all_stage_entries():
        if conflict(entry) is None or (entry.name not in by_name and not _is_reserved(entry.name)):
            by_name.setdefault(entry.name, entry)
    return list(by_name.values())


def _is_reserved(name: str) -> bool:
    from mmcli.cli import COMMANDS

    return name in COMMANDS or any(e.name == name and e.built_in for e in all_stage_entries())


def conflict(entry: StageEntry) -> str | None:
    """Why this entry cannot run because of its name, or None."""
    if entry.built_in:
        return None
    if _is_reserved(entry.name):
        return f'the name "{entry.name}" belongs to mmcli itself'
    others = [e.package for e in all_stage_entries() if e.name == entry.name and e.package != entry.package]
    return f'the name "{entry.name}" is also taken by {", ".join(others)}' if others else None


def stage_summary(name: str) -> str | None:
    """The help line of a stage, or None if there is no such stage."""
    return next((entry.summary for entry in stage_entries() if entry.name == name), None)


def load_entry(entry: StageEntry) -> Stage:
    """Import the stage of one entry point.

    Raises:
        MmcliError: it cannot be loaded, or is not a stage of this API; the package is named.
    """
    problem = conflict(entry)
    if problem is not None:
        raise UserError(
            f'stage "{entry.name}" of {entry.package}: {problem}', f"uninstall one: pip uninstall {entry.package}"
        )
    try:
        stage = entry.point.load()
    except (Exception, SystemExit) as error:
        what = f'stage "{entry.name}" of {entry.package} {entry.version} cannot be loaded: {_cause(error)}'
        raise MmcliError(what, f"mend or remove the package: pip uninstall {entry.package}") from error
    if not isinstance(stage, Stage):
        what = f'"{entry.point.value}" of {entry.package} is {type(stage).__name__}, not mmcli.stage.Stage'
        raise MmcliError(what, f"mend or remove the package: pip uninstall {entry.package}")
    if stage.api != API_VERSION:
        what = f'stage "{entry.name}" of {entry.package} needs stage API {stage.api}; this mmcli has {API_VERSION}'
        raise MmcliError(what, f"install a version of {entry.package} that fits: pip install -U {entry.package}")
    return stage


def _cause(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    place = (
        f" ({Path(error.filename).name}:{error.lineno})" if isinstance(error, SyntaxError) and error.filename else ""
    )
    return f"{type(error).__name__}: {text}{place}"


def load_stage(name: str) -> Stage:
    """The stage of this name, built in or from a plugin.

    Raises:
        UserError: there is none.
        MmcliError: it is there and broken.
    """
    for entry in stage_entries():
        if entry.name == name:
            return load_entry(entry)
    from mmcli.errors import did_you_mean

    raise UserError(f'there is no stage "{name}"', did_you_mean(name, [entry.name for entry in stage_entries()]))


# Commands


def stage_app(name: str) -> typer.Typer:
    """The Typer app of `mmcli NAME`."""
    from mmcli.cli.training import run_stage

    stage = load_stage(name)
    help_text = stage.summary + (f"\n\nExample: {stage.example}" if stage.example else "")
    return options_app(stage, help_text, run_stage, with_run=True)


def options_app(stage: Stage, help_text: str, action: Callable[..., None], *, with_run: bool) -> typer.Typer:
    """A command that takes the options of `stage` and calls `action(stage, layers=..., common options)`."""
    flagged = [leaf for leaf in leaves(stage.config) if leaf.flag]
    parameters = [_parameter(leaf) for leaf in flagged]
    common = [p for p in _common_parameters(stage, with_run)]

    def command(**values: Any) -> None:
        written = [_flag_layer(leaf, values[_python_name(leaf)]) for leaf in flagged]
        action(stage, flags=[layer for layer in written if layer], **{p.name: values[p.name] for p in common})

    command.__signature__ = inspect.Signature([*parameters, *common])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *common]}
    app = typer.Typer(add_completion=False, context_settings=HELP)
    app.command(name=stage.name, help=help_text)(command)
    return app


def _python_name(leaf: Leaf) -> str:
    return "value_" + leaf.key.replace(".", "_")


def _flag_layer(leaf: Leaf, value: Any) -> Layer | None:
    if value is None or value == []:
        return None
    return Layer(leaf.flag or "", {leaf.key: Typed(value) if isinstance(value, str) else value})


def _parameter(leaf: Leaf) -> inspect.Parameter:
    """The command-line option of one config value."""
    default = leaf.field.default
    shown = "" if default is None or default is dataclasses.MISSING or default is False else _shown(default)
    help_text = leaf.doc.replace("[", "\\[") + (f" [dim]\\[default: {shown}][/dim]" if shown else "")
    flag = leaf.flag or ""
    annotation: Any
    if leaf.type is bool:
        annotation = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help_text, show_default=False)]
    elif "tuple" in str(leaf.type):
        annotation = Annotated[list[str] | None, typer.Option(flag, help=help_text, metavar="TEXT", show_default=False)]
    else:
        option = typer.Option(flag, help=help_text, metavar=_metavar(leaf), show_default=False)
        annotation = Annotated[str | None, option]
    return _keyword(_python_name(leaf), annotation, None)


def _shown(default: Any) -> str:
    return " ".join(default) if isinstance(default, tuple) else str(default)


def _metavar(leaf: Leaf) -> str:
    words = describe_type(leaf.type).split(' or "none"')[0]
    if words.startswith("one of "):
        return words.removeprefix("one of ").replace('"', "").replace(", ", "|")
    return {"a whole number": "N", "a number": "X"}.get(words, "TEXT")


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _common_parameters(stage: Stage, with_run: bool) -> list[inspect.Parameter]:
    """The options that every stage has: presets, files, runs."""
    found = [
        _keyword("config", Annotated[Path | None, typer.Option(help="TOML file with values.", metavar="FILE")], None),
        _keyword(
            "set",
            Annotated[list[str] | None, typer.Option(help="Any value: --set optim.lr=3e-4.", metavar="KEY=VALUE")],
            None,
        ),
        _keyword("json", AsJson, False),
        _keyword("runs_dir", RunsDir, Path("runs")),
    ]
    if any(leaf.key.startswith("model.") for leaf in leaves(stage.config)):
        preset = Annotated[str | None, typer.Option(help="Model shape: see mmcli presets list.", metavar="NAME")]
        found.insert(0, _keyword("preset", preset, None))
    if with_run:
        name = Annotated[str | None, typer.Option(help="Name of the run.", metavar="TEXT")]
        resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run of this stage.")]
        found += [_keyword("name", name, None), _keyword("resume", resume, False)]
    return found


def stage_function(stage: Stage) -> Callable[[Any, Any], Mapping[str, Any]]:
    """The function that a stage's `run` names.

    Raises:
        MmcliError: it cannot be imported.
    """
    module, _, function = stage.run.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        what = f'stage "{stage.name}" cannot run: {_cause(error)}'
        raise MmcliError(what, f"check that the package with {module} is installed whole") from error
