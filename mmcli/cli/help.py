"""Help pages: plain text, at most 80 columns, one column of names and one of explanations. No rich, no markup.

Texts are in English here and in the commands; `language.translate` shows them in Chinese to who wants that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from mmcli.cli.language import cells, translate, wrapped

F = TypeVar("F", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"]}
NAMES = 28  # widest column of names; a longer name has a line of its own
NO_BREAK = "\xa0"  # inside [default: ...], so that it is not wrapped
# How a value is named where the option does not say.
METAVARS = {
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "path": "PATH",
}


class _Page:
    """What commands and groups have in common: the help page, and errors that know where they happened."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]  # of the class beside it
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:  # typer leaves it out of some usage errors
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = ["[OPTIONS]"]
        for argument in self.params:  # type: ignore[attr-defined]
            if isinstance(argument, TyperArgument):
                dots = "" if argument.nargs == 1 else "..."
                name = argument_name(argument) + dots
                pieces.append(name if argument.required else f"[{name}]")
        return [*pieces, "COMMAND ..."] if isinstance(self, TyperGroup) else pieces

    def format_help(self, ctx: Any, formatter: Any) -> None:
        text, examples = split_help(self.help or "")  # type: ignore[attr-defined]
        pieces = self.collect_usage_pieces(ctx)
        formatter.write_usage(ctx.command_path, " ".join(pieces), prefix=f"{translate('Usage')}: ")
        if text:
            formatter.write_paragraph()
            with formatter.indentation():
                paragraphs = map(translate, text.split("\n\n"))
                width = formatter.width - formatter.current_indent
                formatter.write_text("\n\n".join(_ready(each, width) for each in paragraphs))
        if examples:
            with formatter.section(translate("Example" if len(examples) == 1 else "Examples")):
                for example in examples:  # never wrapped: it is there to be copied
                    formatter.write(f"  {example}\n")
        _sections(formatter, "Commands", self._commands(ctx))
        if isinstance(self, TyperGroup):
            told = translate("`{} COMMAND --help` explains a command.").format(ctx.command_path)
            formatter.write(f"\n  {told}\n")
        params = self.get_params(ctx)  # type: ignore[attr-defined]
        arguments, options = [], []
        for param in params:
            if isinstance(param, TyperArgument):
                arguments.append(("Arguments", argument_name(param), _explained(param, ctx)))
            elif not param.hidden:
                options.append((param.rich_help_panel or "Options", option_names(param), _explained(param, ctx)))
        _sections(formatter, "Arguments", arguments)
        _sections(formatter, "Options", options)
        formatter.buffer = [piece.replace(NO_BREAK, " ") for piece in formatter.buffer]

    def _commands(self, ctx: Any) -> list[tuple[str, str, str]]:
        """(panel, name, first paragraph of its help) of each subcommand."""
        if not isinstance(self, TyperGroup):
            return []
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        return [
            (
                getattr(command, "rich_help_panel", None) or "Commands",
                name,
                translate(first_paragraph(command.help or "")),
            )
            for name, command in found
            if command is not None
        ]


class Command(_Page, TyperCommand):
    """A command."""


class Group(_Page, TyperGroup):
    """A command with subcommands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from mmcli.errors import UserError, did_you_mean

        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            raise UserError(f'{ctx.command_path} has no command "{args[0]}"', did_you_mean(args[0], names))
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """A Typer app whose commands have these help pages, and -h; shell completion is the root's alone."""

    def __init__(self, *, help: str | None = None, cls: type[TyperGroup] = Group, add_completion: bool = False) -> None:
        super().__init__(cls=cls, add_completion=add_completion, no_args_is_help=True, context_settings=HELP)
        if help is not None:  # else the docstring of the callback
            self.info.help = help

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """As Typer's, with `Command` as the class."""
        return super().command(name, **{"cls": Command, **options})


def split_help(text: str) -> tuple[str, list[str]]:
    """The text of a docstring, and the command lines after `Example:` (several are separated by `;`)."""
    text, _, examples = text.partition("Example:")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))
    return text, [line.strip() for line in re.split(r";\s*(?=mmcli )", " ".join(examples.split())) if line.strip()]


def first_paragraph(text: str) -> str:
    """What the list of a group shows of a command."""
    return split_help(text)[0].partition("\n")[0]


def argument_name(param: TyperArgument) -> str:
    """The name of a positional argument: MODEL."""
    return param.metavar or str(param.name).upper()


def option_names(param: Any) -> str:
    """The names of an option and of its value: `-h, --help`, `--strict / --no-strict`, `--seq-len N`."""
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    return names if param.is_flag else f"{names} {_metavar(param)}"


def _metavar(param: Any) -> str:
    if param.metavar:
        return str(param.metavar)
    choices = getattr(param.type, "choices", None)
    if choices:
        return "|".join(map(str, choices))
    return METAVARS.get(param.type.name.partition(" ")[0], "TEXT")


def _explained(param: Any, ctx: Any) -> str:
    """The help of a parameter with what goes without saying it: default, environment variable, required."""
    facts = []
    default = param.get_default(ctx, call=False)
    if param.show_default and default is not None and default is not False and default != []:
        facts.append(f"[default: {default}]")
    if param.envvar:
        facts.append(f"[env: {param.envvar}]")
    if param.required:
        facts.append("[required]")
    text = translate(" ".join([*(param.help or "").split(), *facts]))
    return re.sub(r"\[[^]]*\]", lambda fact: fact[0].replace(" ", NO_BREAK), text)


def _sections(formatter: Any, first: str, rows: list[tuple[str, str, str]]) -> None:
    """Write rows of (section, name, explanation), a section at a time, in the order in which sections appear."""
    titles = dict.fromkeys([first, *(section for section, _, _ in rows)])
    for title in titles:
        own = [(name, text) for section, name, text in rows if section == title]
        if own:
            with formatter.section(translate(title)):
                names = min(max(len(name) for name, _ in own), NAMES) + 2
                formatter.write_dl([(name, _ready(text, formatter.width - names - 2)) for name, text in own], NAMES)


def _ready(text: str, width: int) -> str:
    """The text, with wide characters wrapped here: the formatter takes every character for one column."""
    return text if cells(text) == len(text) else "\n".join(["\b", *wrapped(text, width)])
