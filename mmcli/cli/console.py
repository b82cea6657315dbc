"""Terminal output: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmcli.errors import MmcliError

if TYPE_CHECKING:
    from rich.console import Console

    from mmcli.stage import Reporter


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


def duration(seconds: float) -> str:
    """A duration in seconds, formatted: 8s, 3m20s, 2h05m, 3d4h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def amount(number: float) -> str:
    """A count with an SI suffix: 950, 12.3k, 4.5M, 1.2G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:.0f}"


def step_line(values: Mapping[str, Any]) -> str:
    """The progress line of one training step, at most 80 columns."""
    steps = values.get("steps")
    parts = [f"step {values['step']}/{steps}" if steps else f"step {values['step']}"]
    for key, shown in (("loss", "loss"), ("margin", "margin"), ("accuracy", "acc"), ("val_loss", "val")):
        if values.get(key) is not None:
            parts.append(f"{shown} {values[key]:.3f}")
    if values.get("val_bits_per_byte") is not None:
        parts.append(f"bpb {values['val_bits_per_byte']:.3f}")
    if values.get("tokens_per_second"):
        parts.append(f"{amount(values['tokens_per_second'])} tok/s")
    load = values.get("expert_load")
    if load and values.get("val_loss") is None:
        spread = f"experts {min(load) * 100:.0f}-{max(load):.0%}"
        parts.append(f"{spread} H{values['expert_entropy']:.2f} drop {values['expert_dropped']:.2g}")
    elif values.get("mfu"):
        parts.append(f"mfu {values['mfu']:.0%}")
    if values.get("eta_seconds") is not None:
        parts.append(f"eta {duration(values['eta_seconds'])}")
    return "  ".join(parts)


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

    def step(self, values: Mapping[str, Any]) -> None:
        notable = values.get("val_loss") is not None or values.get("step") == values.get("steps")
        if self._due("step", notable or values.get("step") == 1):
            self._line(step_line(values))

    def sample(self, prompt: str, text: str) -> None:
        self._line(f"sample: {one_line(prompt + text)}")

    def close(self) -> None:
        """Do nothing: no line is unfinished."""


def one_line(text: str, width: int = 200) -> str:
    """A text on one line, truncated to `width` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
