"""The live part of a terminal: progress or a training's screen, redrawn in place; what is said stays above it."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from mmcli.cli.memory import memory_in_use
from mmcli.cli.progress import amount, escape_control, is_milestone, sample_text, step_line
from mmcli.cli.screen import Glyphs, TrainingScreen, plain
from mmcli.stage import Metric

REDRAWS_PER_SECOND = 4


class LiveReporter:
    """A reporter that redraws some lines while work goes on, in a thread of its own.

    A step of a training only leaves its values there. A sample is shown on the screen until the next one comes, and
    stays above it from then on.
    """

    def __init__(self, console: Console, past: Path | None = None) -> None:
        """
        Args:
            past: metrics.jsonl of the run that is resumed.
        """
        self._console, self._past = console, past
        self._glyphs = Glyphs.of(console.encoding)
        self._region: _Region | None = None
        self._training: TrainingScreen | None = None
        self._progress = Text()

    def _show(self) -> None:
        if self._region is None:
            self._region = _Region(self._console, self._lines)
            self._region.start(refresh=True)

    def _print(self, *objects: Any, **options: Any) -> None:
        (self._region or self._console).print(*objects, **options)

    def _lines(self) -> list[Text]:
        if self._training is None:
            return [self._progress]
        size = self._console.size
        return self._training.lines(size.width, size.height, memory_in_use())

    def close(self) -> None:
        """End what is redrawn; of a training, the curve and the newest sample stay."""
        training, self._training = self._training, None
        if self._region is not None:
            self._region.stop()
            self._region = None
        if training is not None:
            if (curve := training.closing_line(self._console.width)) is not None:
                self._print(curve, no_wrap=True, overflow="crop")
            self._print_sample(training.replace_sample(""))

    def note(self, text: str) -> None:
        if self._training is None:
            self.close()
        self._print(text, markup=False)

    def warn(self, text: str) -> None:
        if self._training is None:
            self.close()
        self._print(Text.assemble(("warning: ", "yellow"), escape_control(text)))

    def progress(self, task: str, done: float, total: float | None, unit: str) -> None:
        if total is None:
            line = f"{task}  {amount(done)} {unit}"
        else:
            share = min(1.0, done / total) if total else 1.0
            filled = round(share * 24)
            bar = f"{self._glyphs.full * filled}{self._glyphs.empty * (24 - filled)}"
            line = f"{task}  {bar}  {share:4.0%}  {amount(done)}/{amount(total)} {unit}"
        self._progress = Text(escape_control(line), no_wrap=True, overflow="ellipsis")
        self._show()
        if total is not None and done >= total:
            self.close()

    def step(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        if self._training is None:
            self._training = TrainingScreen(self._glyphs, self._past)
            self._past = None
        self._training.add(values, metrics)
        if is_milestone(values, metrics):
            self._print(step_line(values, metrics), markup=False, no_wrap=True, overflow="ellipsis")
        self._show()

    def sample(self, prompt: str, text: str) -> None:
        shown = plain(sample_text(prompt, text))
        if self._training is None:
            self._print_sample(shown)
        else:
            self._print_sample(self._training.replace_sample(shown))

    def _print_sample(self, text: str) -> None:
        if text:
            line = Text.assemble(("sample: ", "dim"), text)
            self._print(line, no_wrap=True, overflow="ellipsis")


class _Region(Live):
    """Lines at the end of a terminal, drawn anew by a thread, for its size; they vanish when the region is stopped.

    A terminal that became narrower has cut the lines that were drawn into more, all of which are to be erased.
    """

    def __init__(self, console: Console, lines: Callable[[], list[Text]]) -> None:
        self._lines, self._newest = lines, list[Text]()
        self._cells: list[int] = []  # of each line that was drawn
        self._writing = threading.RLock()  # whoever writes: two at once would not know where the cursor is
        self._ended = threading.Event()
        super().__init__(
            console=console,
            auto_refresh=False,
            get_renderable=self._draw,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        threading.Thread(target=self._redraw, name="live", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        with self._writing:
            super().stop()

    def refresh(self) -> None:
        with self._writing:
            super().refresh()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print above the region."""
        with self._writing:
            self.console.print(*objects, **options)

    def _redraw(self) -> None:
        while not self._ended.wait(1 / REDRAWS_PER_SECOND):
            with self._writing:
                if self.is_started:
                    self.refresh()

    def _draw(self) -> Group:
        self._newest = self._lines()
        return Group(*self._newest)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = max(1, self.console.width)
        extra = sum(math.ceil(cells / width) - 1 for cells in self._cells if cells)
        above = [Control(ControlType.CARRIAGE_RETURN, *_ERASE_UP * extra)] if extra else []
        self._cells = [min(cell_len(line.plain), width) for line in self._newest]
        return [*above, *super().process_renderables(renderables)]


_ERASE_UP = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
