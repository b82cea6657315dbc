"""Stage commands, made from the fields of each stage's config. A stage is loaded only when it is invoked.

`--help` shows, for every option, the value that the same command line without `--help` would use.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcli import plugins
from mmcli.cli.help import App, Command
from mmcli.cli.options import AllowChange, AsJson, Nproc, RunsDir
from mmcli.config import (
    AT_WIDTH,
    DEFAULT,
    ON_DEVICE,
    Layer,
    Leaf,
    Typed,
    describe_type,
    leaves,
    merge_layers,
    parse_set,
)
from mmcli.errors import MmcliError
from mmcli.plugins import Plugin
from mmcli.stage import Stage

PANELS = {"data": "Data options", "optim": "Training options", "train": "Training options"}  # by the table of a key
BUILT_IN_SUMMARIES = {  # so that `mmcli --help` loads no stage; a test holds them equal to the stages' own
    "pretrain": "Train a model from scratch on plain text.",
    "sft": "Fine-tune a model on conversations, so that it answers.",
    "dpo": "Train a model to prefer the better of two answers.",
}


def stage_entries() -> list[Plugin]:
    """One entry for each stage name that can be typed, the built-ins first; loadable or not."""
    order = list(BUILT_IN_SUMMARIES)
    entries = plugins.stages().values()
    return sorted(entries, key=lambda p: order.index(p.name) if p.built_in and p.name in order else len(order))


def stage_summary(name: str) -> str | None:
    """The help line of a stage, or None if there is no such stage."""
    entry = plugins.stages().get(name)
    if entry is None:
        return None
    if entry.built_in:
        return BUILT_IN_SUMMARIES.get(name, "")
    packages = [p.package for p in plugins.installed() if (p.kind, p.name) == ("stage", name)]
    if len(packages) > 1:
        return f"(taken by the packages {', '.join(packages)}: none runs)"
    return f"(from the package {entry.package})"


# Commands


def stage_app(name: str) -> typer.Typer:
    """The Typer app of `mmcli NAME`."""
    from mmcli.cli.training import run_stage
    from mmcli.runner import load_stage

    stage = load_stage(name)
    help_text = stage.summary + (f"\n\nExample: {stage.example}" if stage.example else "")
    return options_app(stage, help_text, run_stage, with_run=True)


def options_app(
    stage: Stage,
    help_text: str,
    action: Callable[..., None],
    *,
    with_run: bool,
    extra: Sequence[inspect.Parameter] = (),
) -> typer.Typer:
    """A command that takes the options of `stage` and calls `action(stage, flags=..., common options)`.

    Args:
        extra: options that only this command has.

    Raises:
        MmcliError: two of its fields want one option, or one of those that every stage has.
    """
    flagged = [leaf for leaf in leaves(stage.config) if leaf.flag]
    parameters = [_parameter(leaf) for leaf in flagged]
    common = [*_common_parameters(stage, with_run), *extra]
    _check_flags(stage, flagged)

    def flag_layers(values: Mapping[str, Any]) -> list[Layer]:
        written = [_flag_layer(leaf, values[_python_name(leaf)]) for leaf in flagged]
        return [layer for layer in written if layer]

    def command(**values: Any) -> None:
        action(stage, flags=flag_layers(values), **{p.name: values[p.name] for p in common})

    class StageCommand(Command):
        """The command, whose help knows its own command line."""

        def parse_args(self, ctx: Any, args: list[str]) -> Any:
            self.arguments = list(args)
            return super().parse_args(ctx, args)

        def format_help(self, ctx: Any, formatter: Any) -> None:
            values = _parsed(self, ctx, self.arguments)
            shown = _shown_values(stage, flag_layers(values), values)
            for parameter in self.params:
                parameter.help += shown.get(str(parameter.name), "")  # type: ignore[attr-defined]  # an option
            super().format_help(ctx, formatter)

    command.__signature__ = inspect.Signature([*parameters, *common])  # type: ignore[attr-defined]  # typer reads it
    command.__annotations__ = {p.name: p.annotation for p in [*parameters, *common]}
    app = App()
    app.command(name=stage.name, help=help_text, cls=StageCommand)(command)
    return app


# The values in --help


def _parsed(command: Command, ctx: Any, args: list[str]) -> dict[str, Any]:
    """The value of each parameter on a command line; no callback runs, that of `--help` neither."""
    given, _, _ = command.make_parser(ctx).parse_args(args)
    values = {}
    for parameter in command.params:
        raw, _ = parameter.consume_value(ctx, given)
        values[str(parameter.name)] = parameter.process_value(ctx, raw)
    return values


def _shown_values(stage: Stage, flags: Sequence[Layer], values: Mapping[str, Any]) -> dict[str, str]:
    """What `--help` appends to the text of a parameter: the value in use, and whether this command line gives it."""
    from mmcli.runner import stage_layers

    own = [parse_set(values["set"] or []), *flags]
    runs_dir, file = Path(values["runs_dir"]), Path(values["config"]) if values["config"] else None
    layers, preset = stage_layers(stage, own, runs_dir=runs_dir, preset=values.get("preset"), config_file=file)
    set_values, sources = merge_layers(stage.config, layers)
    given = {str(file), *(layer.name for layer in own)}
    shown = {}
    for leaf in leaves(stage.config):
        value, source = set_values.get(leaf.key, leaf.default), sources[leaf.key]
        if value is not None and value != () and (value is not False or source != DEFAULT):
            fitted = source.startswith("preset ") and (AT_WIDTH in source or ON_DEVICE in source)
            why = f" ({source})" if fitted else ""
            shown[_python_name(leaf)] = _note("given" if source in given else "default", _text(value) + why)
    if preset is not None:
        shown["preset"] = _note("given" if values.get("preset") else "default", preset)
    return shown


def _note(word: str, value: str) -> str:
    return f" [{word}: {value}]"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, tuple) else str(value)


# Options


def _check_flags(stage: Stage, flagged: list[Leaf]) -> None:
    common = [f"--{p.name.replace('_', '-')}" for p in _common_parameters(stage, with_run=True)]
    counts = Counter([*common, "--help", "--debug", *(leaf.flag for leaf in flagged)])
    twice = [flag for flag, count in counts.items() if count > 1]
    if twice:
        what = f'stage "{stage.name}" gives {twice[0]} two meanings ({stage.config.__name__})'
        raise MmcliError(what, "rename that option in the package")


def _python_name(leaf: Leaf) -> str:
    return "value_" + leaf.key.replace(".", "_")


def _flag_layer(leaf: Leaf, value: Any) -> Layer | None:
    if value is None or value in ([], ()):
        return None
    return Layer(leaf.flag or "", {leaf.key: Typed(value) if isinstance(value, str) else value})


def _parameter(leaf: Leaf) -> inspect.Parameter:
    """The command-line option of one config value."""
    help_text = f"{leaf.doc[:1].upper()}{leaf.doc[1:]}."
    flag = leaf.flag or ""
    shown: dict[str, Any] = {"help": help_text, "show_default": False}
    if "." in leaf.key:
        shown["rich_help_panel"] = PANELS.get(leaf.key.partition(".")[0])
    annotation: Any
    if leaf.type is bool:
        annotation = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **shown)]
    elif "a list of texts" in describe_type(leaf.type):
        annotation = Annotated[list[str] | None, typer.Option(flag, metavar="TEXT", **shown)]
    else:
        annotation = Annotated[str | None, typer.Option(flag, metavar=_metavar(leaf), **shown)]
    return _keyword(_python_name(leaf), annotation, None)


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
        _keyword(
            "config",
            Annotated[Path | None, typer.Option(help="TOML file of configuration values.", metavar="FILE")],
            None,
        ),
        _keyword(
            "set",
            Annotated[
                list[str] | None,
                typer.Option(help="Any configuration value, such as optim.lr=3e-4; repeatable.", metavar="KEY=VALUE"),
            ],
            None,
        ),
        _keyword("json", AsJson, False),
        _keyword("runs_dir", RunsDir, Path("runs")),
    ]
    if any(leaf.key.startswith("model.") for leaf in leaves(stage.config)):
        preset = Annotated[
            str | None, typer.Option(help="Model shape, such as small; `mmcli presets list` shows all.", metavar="NAME")
        ]
        found.insert(0, _keyword("preset", preset, None))
    if with_run:
        name = Annotated[str | None, typer.Option(help="Name of the new run.", metavar="TEXT")]
        resume = Annotated[bool, typer.Option("--resume", help="Resume the newest unfinished run of this stage.")]
        found += [_keyword("name", name, None), _keyword("resume", resume, False)]
        found.append(_keyword("allow_change", AllowChange, None))
        if any(leaf.key.startswith("train.") for leaf in leaves(stage.config)):
            found.append(_keyword("nproc", Nproc, None))
    return found
