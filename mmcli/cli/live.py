"""The live line of a terminal: progress redrawn in place; notes and milestones stay above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mmcli.cli.progress import amount, is_milestone, one_line, step_line
from mmcli.stage import Metric


class LiveReporter:
    """A reporter that redraws one line while work goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def _show(self, line: str) -> None:
        text = Text(line, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = Live(text, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        else:
            self._live.update(text)

    def close(self) -> None:
        """End the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        self.close()
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.close()
        self._console.print(Text.assemble(("warning: ", "yellow"), text))

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        if total is None:
            self._show(f"{task}  {amount(done)} {unit}")
            return
        share = min(1.0, done / total) if total else 1.0
        filled = round(share * 24)
        self._show(f"{task}  {'━' * filled}{'─' * (24 - filled)}  {share:4.0%}  {amount(done)}/{amount(total)} {unit}")
        if done >= total:
            self.close()

    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        line = step_line(values, metrics)
        if is_milestone(values, metrics):
            self.close()
            self._console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
        else:
            self._show(line)

    def sample(self, prompt: str, text: str) -> None:
        self.close()
        shown = one_line(prompt + text, 400)
        self._console.print(Text.assemble(("sample: ", "dim"), shown))
