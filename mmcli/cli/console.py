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

from mmcli.cli.progress import amount, escape_control, is_milestone, one_line, sample_text, step_line
from mmcli.cli.streams import stderr
from mmcli.errors import MmcliError
from mmcli.ranks import LAUNCHED, find_place

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from mmcli.stage import Metric, Reporter


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
    from rich.text import Text

    console = err()  # word and text at once: a line that is too long breaks where the terminal ends
    console.print(Text.assemble(("error:", "bold red"), " ", escape_control(error.what)))
    console.print(Text.assemble(("  fix:", "bold"), " ", escape_control(error.fix)))


def interactive() -> bool:
    """True if stderr is a terminal that can redraw lines, outside of CI."""
    return stderr().isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def reporter(past: Path | None = None) -> Reporter:
    """The reporter for this terminal: lines redrawn in place, or plain lines if piped or in CI.

    Args:
        past: metrics.jsonl of the run that is resumed, the beginning of its curve.
    """
    place = find_place()
    if place.rank > 0:
        return RankReporter("" if os.environ.get(LAUNCHED) else f"rank {place.rank}: ")
    made: Reporter
    if interactive():
        from mmcli.cli.live import LiveReporter

        made = LiveReporter(err(), past)
    else:
        made = PlainReporter()
    _reporters.append(made)
    return made


def close_reporters() -> None:
    """End what any reporter is still redrawing, so that an error is printed below it and the cursor is back."""
    while _reporters:
        _reporters.pop().close()


_reporters: list[Reporter] = []


class PlainReporter:
    """A reporter without a live line: all notes, and a progress or step line every few seconds at most."""

    every_seconds = 5.0
    busy_seconds = 300.0  # at least, from one word about a busy machine to the next

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def _due(self, key: str, final: bool, every_seconds: float = every_seconds) -> bool:
        now = time.monotonic()
        if not final and now - self._last.get(key, -every_seconds) < every_seconds:
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
        if values.get("busy") and self._due("busy", False, self.busy_seconds):
            self._line(str(values["busy"]))

    def sample(self, prompt: str, text: str) -> None:
        self._line(f"sample: {one_line(sample_text(prompt, text))}")

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
