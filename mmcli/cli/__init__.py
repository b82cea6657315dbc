"""The command line. Commands are loaded when they are called, so that `mmcli --help` is quick."""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from mmcli import __version__
from mmcli.cli.help import App, Group
from mmcli.errors import MmcliError, UserError
from mmcli.ranks import LAUNCHED, RankLost, find_place


@dataclass(frozen=True)
class Command:
    """A command that is not a stage: where it lives and its line in `mmcli --help`."""

    module: str
    summary: str
    panel: str


INTERRUPTED = 130  # 128 + SIGINT
DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
TRAIN, USE, INSPECT = "Train", "Use", "Inspect"
COMMANDS = {
    "demo": Command("mmcli.cli.demo", "Run the full pipeline on the built-in corpus, in minutes.", TRAIN),
    "tokenizer": Command("mmcli.cli.tokenizer", "Train, inspect and compare tokenizers.", TRAIN),
    "resume": Command("mmcli.cli.resume", "Resume a stopped run.", TRAIN),
    "import": Command("mmcli.cli.importing", "Import a model from transformers, MiniMind or GGUF.", TRAIN),
    "chat": Command("mmcli.cli.chat", "Chat with a model, or let it complete a text.", USE),
    "serve": Command("mmcli.cli.serve", "Serve models over HTTP, as OpenAI's API does, with a chat page.", USE),
    "eval": Command("mmcli.cli.eval", "Score a model on questions, or measure its loss on a text.", USE),
    "export": Command("mmcli.cli.export", "Export a model to ONNX, Hugging Face or GGUF format, and verify it.", USE),
    "bench": Command("mmcli.cli.bench", "Measure tokens/s, time to first token and memory.", USE),
    "runs": Command("mmcli.cli.runs", "List, compare, plot, rename, remove or verify runs.", INSPECT),
    "data": Command("mmcli.cli.data", "Preview and validate training data.", INSPECT),
    "params": Command("mmcli.cli.params", "Count a model's parameters, memory and FLOPs exactly.", INSPECT),
    "presets": Command("mmcli.cli.presets", "List the built-in model shapes, or show one.", INSPECT),
    "config": Command("mmcli.cli.config", "Show a stage's configuration and where each value comes from.", INSPECT),
    "plan": Command("mmcli.cli.plan", "Say what a training will take: time, memory, disk, cost.", INSPECT),
    "doctor": Command("mmcli.cli.doctor", "Check this machine for training; say how to fix what is wrong.", INSPECT),
    "plugins": Command("mmcli.cli.plugins", "List, check and begin plugins of every kind.", INSPECT),
}


class LazyGroup(Group):
    """The root group: names and summaries from tables and package metadata, modules only when invoked."""

    def list_commands(self, ctx: Any) -> list[str]:
        from mmcli.cli.stages import stage_entries

        stages = [entry.name for entry in stage_entries()]
        return ["demo", "tokenizer", *[name for name in stages if name not in COMMANDS], *list(COMMANDS)[2:]]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A placeholder with the summary, enough for help and completion; None if there is no such command."""
        if cmd_name in COMMANDS:
            command = COMMANDS[cmd_name]
            return TyperCommand(cmd_name, help=command.summary, rich_help_panel=command.panel)
        from mmcli.cli.stages import stage_summary

        summary = stage_summary(cmd_name)
        return None if summary is None else TyperCommand(cmd_name, help=summary, rich_help_panel=TRAIN)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if name in COMMANDS:
            app = importlib.import_module(COMMANDS[name].module).app
        elif self.get_command(ctx, name) is not None:
            from mmcli.cli.stages import stage_app

            app = stage_app(name)
        else:
            from mmcli.errors import did_you_mean

            raise UserError(f'there is no command "{name}"', did_you_mean(name, self.list_commands(ctx)))
        command = typer.main.get_command(app)
        command.name = name
        return name, command, args[1:]


app = App(cls=LazyGroup, add_completion=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmcli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback; may stand anywhere in a command line.")
    ] = False,
) -> None:
    """Train a small language model from scratch, then use it.

    New here? `mmcli demo` runs every step on a built-in corpus. The steps one by one are `mmcli tokenizer train`,
    `pretrain`, `sft`, `dpo`, `chat`, `eval` and `export onnx`. Each of them runs without options: it takes the built-in
    corpus and the latest model, and says so.

    Example: mmcli demo; mmcli pretrain --data books/ --budget 20m; mmcli chat
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 ours, 129, 130 and 143 for signals."""
    from mmcli.cli.launch import end_with_launcher
    from mmcli.cli.streams import open_standard_streams, release_standard_streams
    from mmcli.threads import prepare_openmp

    open_standard_streams()
    prepare_openmp()
    end_with_launcher()
    code = run(sys.argv[1:] if argv is None else argv)
    release_standard_streams()
    if _is_rank():
        _leave(code)
    sys.exit(code)


def _is_rank() -> bool:
    try:
        return find_place().world > 1
    except UserError:
        return False


def _leave(code: int) -> NoReturn:
    """End the process without C++'s destructors: those of torch.distributed abort now and then, after all is done."""
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does: pools of threads end, other threads are awaited
    atexit._run_exitfuncs()
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors become two lines on stderr."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    debug = "--debug" in argv[:cut] or bool(os.environ.get("MMCLI_DEBUG"))
    args = [arg for i, arg in enumerate(argv) if arg != "--debug" or i > cut]
    from mmcli.cli.console import close_reporters, print_error
    from mmcli.cli.signals import raise_terminated
    from mmcli.cli.streams import drop_stdout
    from mmcli.errors import Terminated

    signals: Sequence[int] = ()
    try:
        with raise_terminated() as signals:
            try:
                result = typer.main.get_command(app).main(args, prog_name="mmcli", standalone_mode=False)
            finally:
                close_reporters()
            sys.stdout.flush()
        code = result if isinstance(result, int) else 0
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            return _interrupted()
        return code
    except MmcliError as error:
        if debug:
            raise
        if not (isinstance(error, RankLost) and os.environ.get(LAUNCHED)):  # the launcher names the one that is lost
            print_error(error)
        return error.exit_code
    except Terminated as error:
        return _interrupted(error.signal_number)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        drop_stdout()
        return 0
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        drop_stdout()  # typer's end of a command whose output nobody reads any more
        return 0
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        if signals and not debug:
            return _interrupted(signals[0])
        return _report_unexpected(error, debug)


def _interrupted(number: int = signal.SIGINT) -> int:
    from mmcli.cli.console import print_error

    print_error(MmcliError(f"stopped by {signal.Signals(number).name}", "run the command again"))
    return 128 + number


def _report_unexpected(error: Exception, debug: bool) -> int:
    """Usage errors of the parser in two lines; anything else is a bug in mmcli."""
    from mmcli.cli.console import print_error

    if hasattr(error, "format_message"):  # a ClickException of the parser that typer carries
        from mmcli.cli.usage import usage_error

        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(error.format_message() + "\n")
        else:
            print_error(usage_error(error))
        return 2
    if debug:
        raise error
    if (known := _of_the_machine(error)) is not None:
        print_error(known)
        return known.exit_code
    kind = type(error).__name__
    print_error(MmcliError(f"{kind}: {error}", "this is a bug in mmcli; run it again with --debug for the traceback"))
    return 1


def _of_the_machine(error: Exception) -> UserError | None:
    """Two lines for what neither mmcli nor its user did: no space, no permission, no memory."""
    if isinstance(error, MemoryError):
        return UserError("out of memory", "close other programs, or give smaller sizes")
    number = getattr(error, "errno", None)
    if "No space left on device" in str(error):  # also of libraries that are not Python's own
        number = errno.ENOSPC
    place = getattr(error, "filename", None) or "a file"
    if isinstance(error, PermissionError):
        return UserError(
            f"cannot use {place}: {os.strerror(number or errno.EACCES)}",
            "change its permissions, or use another folder",
        )
    if number not in DISK_ERRORS:
        return None
    return UserError(f"cannot write {place}: {os.strerror(number)}", "free space, or write to another folder")
