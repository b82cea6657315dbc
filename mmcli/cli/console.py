"""Terminal output: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcli.errors import MmcliError

if TYPE_CHECKING:
    from rich.console import Console

    from mmcli.stage import Metric, Reporter

LINE_COLUMNS = 80


def out() -> Console:
    """The console of results (stdout)."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """The console of progress, notes and errors (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
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
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def reporter() -> Reporter:
    """The reporter for this terminal: a live line, or plain lines if piped or in CI."""
    if interactive():
        from mmcli.cli.live import LiveReporter

        return LiveReporter(err())
    return PlainReporter()


def amount(number: float) -> str:
    """A count with an SI suffix: 950, 12.3k, 4.5M, 1.2G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:.0f}"


def step_line(values: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    """One training step on a line: the metrics, the speed, and what of the rest fits into 80 columns.

    The rest is, in this order, each group of metrics and the MFU.
    """
    from mmcli.train.config import duration

    steps = values.get("steps")
    parts = [f"step {values['step']}/{steps}" if steps else f"step {values['step']}"]
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        if values.get(metric.name) is not None:
            shown = metric.text(values[metric.name])
            groups.setdefault(metric.group, []).append(shown)
    parts += groups.pop("", [])
    if values.get("tokens_per_second"):
        parts.append(f"{amount(values['tokens_per_second'])} tok/s")
    ending = [f"eta {duration(values['eta_seconds'])}"] if values.get("eta_seconds") is not None else []
    rest = [" ".join(group) for group in groups.values()]
    if values.get("mfu"):
        rest.append(f"mfu {values['mfu']:.0%}")
    for part in rest:
        if len("  ".join([*parts, part, *ending])) <= LINE_COLUMNS:
            parts.append(part)
    return "  ".join([*parts, *ending])


def is_milestone(values: Mapping[str, Any], metrics: Sequence[Metric]) -> bool:
    """True of a step whose line is kept: one with a value on held-out data, and the last."""
    evaluated = any(metric.held_out and values.get(metric.name) is not None for metric in metrics)
    return evaluated or values.get("step") == values.get("steps")


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
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

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


def one_line(text: str, width: int = 200) -> str:
    """A text on one line, truncated to `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
