"""Terminal output: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcli.cli.progress import amount, is_milestone, one_line, step_line
from mmcli.cli.streams import stderr
from mmcli.errors import MmcliError
from mmcli.ranks import LAUNCHED, find_place

if TYPE_CHECKING:
    from rich.console import Console

    from mmcli.stage import Metric, Reporter


# Control characters in names and texts must not reach the terminal: they are spelled out.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def escape_control(text: str) -> str:
    """`text` with what could steer a terminal spelled out, as in `\\x1b`."""
    return text.translate(_CONTROL) if not text.isprintable() else text


@functools.cache
def _console_type() -> type[Console]:
    from rich.console import Console

    class Escaping(Console):
        """A console that spells control characters out."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(escape_control(each) if isinstance(each, str) else each for each in objects), **options)

    return Escaping


def out() -> Console:
    """The console of results (stdout)."""
    return _console_type()(highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """The console of progress, notes and errors (stderr)."""
    stream = stderr()
    return _console_type()(file=stream, highlight=False, soft_wrap=not stream.isatty())


def print_json(value: Any) -> None:
    """One JSON document on stdout, in UTF-8 whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_error(error: MmcliError) -> None:
    """Print an error in two lines: what is wrong, and what to do."""
    console = err()
    console.print("error:", style="bold red", end=" ")
    console.print(error.what, markup=False)
    console.print("  fix:", style="bold", end=" ")
    console.print(error.fix, markup=False)


def interactive() -> bool:
    """True if stderr is a terminal that can redraw a line, outside of CI."""
    return stderr().isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def reporter() -> Reporter:
    """The reporter for this terminal: a live line, or plain lines if piped or in CI; rank 0 speaks for all."""
    place = find_place()
    if place.rank > 0:
        return RankReporter("" if os.environ.get(LAUNCHED) else f"rank {place.rank}: ")
    if interactive():
        from mmcli.cli.live import LiveReporter

        return LiveReporter(err())
    return PlainReporter()


class PlainReporter:
    """A reporter without a live line: all notes, and a progress or step line every few seconds at most."""

    every_seconds = 5.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def _due(self, key: str, final: bool) -> bool:
        now = time.monotonic()
        if not final and now - self._last.get(key, -self.every_seconds) < self.every_seconds:
            return False
        self._last[key] = now
        return True

    def _line(self, text: str) -> None:
        stream = stderr()
        stream.write(escape_control(text) + "\n")
        stream.flush()

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        final = total is not None and done >= total
        if self._last.get(task) == float("inf"):  # its end was reported
            return
        if self._due(task, final):
            share = f" ({done / total:.0%})" if total else ""
            self._line(f"{task}: {amount(done)} {unit}{share}")
        if final:
            self._last[task] = float("inf")

    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        if self._due("step", is_milestone(values, metrics) or values.get("step") == 1):
            self._line(step_line(values, metrics))

    def sample(self, prompt: str, text: str) -> None:
        self._line(f"sample: {one_line(prompt + text)}")

    def close(self) -> None:
        """Do nothing: no line is unfinished."""


class RankReporter:
    """A reporter of a process that trains with others: it prints warnings alone, since rank 0 reports the rest."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        stderr().write(f"{self._prefix}warning: {escape_control(text)}\n")

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None: ...
    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None: ...
    def sample(self, prompt: str, text: str) -> None: ...
    def close(self) -> None: ...
