"""The command line. Commands are loaded when they are called, so that `mmcli --help` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mmcli import __version__
from mmcli.cli.options import HELP
from mmcli.errors import MmcliError


@dataclass(frozen=True)
class Command:
    """A command that is not a stage: where it lives and its line in `mmcli --help`."""

    module: str
    summary: str
    panel: str


TRAIN, USE, LOOK = "Train", "Use", "Look around"
COMMANDS = {
    "demo": Command("mmcli.cli.demo", "The whole way on the built-in corpus, in minutes.", TRAIN),
    "tokenizer": Command("mmcli.cli.tokenizer", "Train a tokenizer; see how it cuts a text.", TRAIN),
    "resume": Command("mmcli.cli.resume", "Go on with a run that was stopped.", TRAIN),
    "eval": Command("mmcli.cli.eval", "Score a model on held-out questions, or on a text.", USE),
    "import": Command("mmcli.cli.importing", "Take over a model that was trained elsewhere.", TRAIN),
    "chat": Command("mmcli.cli.chat", "Talk to a model, or let it continue a text.", USE),
    "export": Command("mmcli.cli.export", "Write a model for other programs, proven to say the same.", USE),
    "bench": Command("mmcli.cli.bench", "Tokens a second, time to the first token, memory.", LOOK),
    "params": Command("mmcli.cli.params", "Count parameters, memory and FLOPs exactly.", LOOK),
    "presets": Command("mmcli.cli.presets", "The model shapes that come with mmcli.", LOOK),
    "config": Command("mmcli.cli.config", "See a stage's configuration and where each value comes from.", LOOK),
    "data": Command("mmcli.cli.data", "See records as the model will, and check a file.", LOOK),
    "plugins": Command("mmcli.cli.plugins", "The stages and adapters that are installed.", LOOK),
    "runs": Command("mmcli.cli.runs", "List the runs, or look at one.", LOOK),
}


class LazyGroup(TyperGroup):
    """The root group: names and summaries from tables and package metadata, modules only when invoked."""

    def list_commands(self, ctx: Any) -> list[str]:
        from mmcli.cli.stages import stage_entries

        stages = [entry.name for entry in stage_entries()]
        return ["demo", "tokenizer", *[name for name in stages if name not in COMMANDS], *list(COMMANDS)[2:]]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A placeholder with the summary, enough for help and completion; None if there is no such command."""
        from mmcli.cli.stages import stage_summary

        if cmd_name in COMMANDS:
            command = COMMANDS[cmd_name]
            return TyperCommand(cmd_name, help=command.summary, rich_help_panel=command.panel)
        summary = stage_summary(cmd_name)
        return None if summary is None else TyperCommand(cmd_name, help=summary, rich_help_panel=TRAIN)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from mmcli.cli.stages import stage_app

        name = args[0]
        if name in COMMANDS:
            app = importlib.import_module(COMMANDS[name].module).app
        elif self.get_command(ctx, name) is not None:
            app = stage_app(name)
        else:
            from mmcli.errors import UserError, did_you_mean

            raise UserError(f'there is no command "{name}"', did_you_mean(name, self.list_commands(ctx)))
        command = typer.main.get_command(app)
        command.name = name
        return name, command, args[1:]


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, context_settings=HELP)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (works anywhere).")] = False,
) -> None:
    """Train a small language model from zero, then use it.

    Each command works with no arguments: start with `mmcli demo`.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 ours, 130 and 143 for signals."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors become two lines on stderr."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    debug = "--debug" in argv[:cut] or bool(os.environ.get("MMCLI_DEBUG"))
    args = [arg for i, arg in enumerate(argv) if arg != "--debug" or i > cut]
    from mmcli.cli.console import print_error

    try:
        result = typer.main.get_command(app).main(args, prog_name="mmcli", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except MmcliError as error:
        if debug:
            raise
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:  # what typer makes of Ctrl-C
        sys.stderr.write("stopped\n")
        return 130
    except Exception as error:
        return _report_unexpected(error, debug)


def _report_unexpected(error: Exception, debug: bool) -> int:
    """Usage errors of the parser in our two lines; anything else is our own fault."""
    from mmcli.cli.console import print_error
    from mmcli.errors import UserError

    message = getattr(error, "format_message", None)
    if message is not None:  # a ClickException of the parser that typer carries
        text = message()
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(text + "\n")
            return 2
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "mmcli"
        print_error(UserError(text.replace("\n", " ").rstrip("."), f"see: {path} --help"))
        return 2
    if debug:
        raise error
    kind = type(error).__name__
    print_error(MmcliError(f"{kind}: {error}", "this is a fault of mmcli; `--debug` shows where"))
    return 1
