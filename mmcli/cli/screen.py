"""The live screen of a training: a few lines, laid out anew for each width and height of the terminal."""

from __future__ import annotations

import json
import math
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.cells import cell_len
from rich.console import OverflowMethod
from rich.text import Text

from mmcli.cli.curve import ASCII_BLOCKS, BLOCKS, Curve, bars, sparkline
from mmcli.cli.progress import amount
from mmcli.stage import Metric
from mmcli.train.config import duration

MOST_ROWS = 9
MOST_BAR_CELLS = 40
LEAST_CURVE_CELLS = 10
MOST_EXPERTS = 64  # bars; of more only the range is shown
GAP = "  "
NUMBER = re.compile(r"-?\d.*")  # of a field, and all that follows
FORMAT_CHARACTERS = {"Cf", "Cc", "Cs", "Co", "Cn"}  # no cell of their own, or unknown ones


@dataclass(frozen=True)
class Glyphs:
    """The characters of bars and curves."""

    blocks: str = BLOCKS
    full: str = "━"
    empty: str = "─"
    more: str = "…"

    @classmethod
    def of(cls, encoding: str) -> Glyphs:
        """Those that a terminal with this encoding can show."""
        return cls() if encoding.lower().startswith("utf") else cls(ASCII_BLOCKS, "#", "-", "...")


class TrainingScreen:
    """What a training last said, and its curve; `lines` draws them. Adding a step costs no more than an append."""

    def __init__(self, glyphs: Glyphs, past: Path | None = None) -> None:
        """
        Args:
            past: metrics.jsonl of a run that is resumed; its steps are the beginning of the curve.
        """
        self._glyphs, self._past = glyphs, past
        self._curve = Curve()
        self._values: Mapping[str, Any] = {}
        self._metrics: Sequence[Metric] = ()
        self._held_out: dict[str, Any] = {}
        self._best: tuple[float, int] | None = None  # (value, step) of the first held-out metric
        self._at = 0.0  # when the newest step came
        self._sample = ""
        self._widest: dict[str, int] = {}  # cells of each field so far, so that those after it stay where they are

    # What comes in

    def add(self, values: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        """One training step (see `Reporter.step`)."""
        if self._past is not None:
            path, self._past = self._past, None
            for before in read_past(path, values["step"] - 1):
                self._take(before, before["step"], metrics)
        self._values, self._metrics, self._at = values, metrics, time.monotonic()
        # What is measured on held-out data belongs to the weights before this step.
        self._take(values, values["step"] - 1, metrics)

    def _take(self, values: Mapping[str, Any], held_out_step: int, metrics: Sequence[Metric]) -> None:
        if _is_number(value := values.get(metrics[0].name)):
            self._curve.add(value)
        names = [metric.name for metric in metrics if metric.held_out and values.get(metric.name) is not None]
        self._held_out |= {name: values[name] for name in names}
        first = next((metric.name for metric in metrics if metric.held_out), None)
        if first in names and _is_number(value := values[first]) and (self._best is None or value < self._best[0]):
            self._best = (value, held_out_step)

    def replace_sample(self, text: str) -> str:
        """Show this text from now on; the one that was shown until now."""
        before, self._sample = self._sample, text
        return before

    # What is drawn

    def lines(self, width: int, height: int, memory: str = "") -> list[Text]:
        """At most half as many lines as the terminal has, each shorter than `width` cells.

        Args:
            width, height: cells of the terminal.
            memory: in words; empty: not shown.
        """
        if not self._values:
            return []
        width, rows = max(8, width - 1), max(1, min(MOST_ROWS, height // 2))
        top = [self._progress(width), *([self._loss(width)] if rows > 1 else [])]
        notes = [Text(str(busy), "yellow")] if (busy := self._values.get("busy")) and rows > 2 else []
        facts = self._flow([self._quality(), *self._groups(), self._now(memory)], width)
        facts = facts[: rows - len(top) - len(notes)]
        left = rows - len(top) - len(notes) - len(facts)
        shown = [*top, *notes, *facts, *self._sample_lines(width, min(2, left))]
        overflow: OverflowMethod = "ellipsis" if self._glyphs.more == "…" else "crop"
        for line in shown:
            line.no_wrap = True
            line.truncate(width, overflow=overflow)
        return shown

    def closing_line(self, width: int) -> Text | None:
        """The curve of the whole training, to stay above what follows; None if there is hardly one."""
        return self._loss(max(8, width - 1)) if self._curve.added >= LEAST_CURVE_CELLS else None

    def _progress(self, width: int) -> Text:
        values = self._values
        step, steps, since = values["step"], values.get("steps"), time.monotonic() - self._at
        ending = []
        if values.get("elapsed_seconds") is not None:
            ending.append(f"{duration(values['elapsed_seconds'] + since)}")
        if values.get("eta_seconds") is not None:
            ending.append(f"eta {duration(max(0.0, values['eta_seconds'] - since))}")
        if not steps:
            return Text(GAP.join([f"step {step}", *ending]), "bold")
        share = min(1.0, step / steps)
        head, tail = f"step {step}/{steps}", GAP.join([f"{share:4.0%}", *ending])
        cells = min(MOST_BAR_CELLS, width - cell_len(head) - cell_len(tail) - 2 * len(GAP))
        if cells < 4:
            return Text(f"{head}{GAP}{tail}", "bold")
        filled = int(share * cells)
        bar = ((self._glyphs.full * filled, "green"), (self._glyphs.empty * (cells - filled), "dim"))
        return Text.assemble((head, "bold"), GAP, *bar, GAP, tail)

    def _loss(self, width: int) -> Text:
        """The headline metric: now, smoothed, and the curve of the whole training."""
        metric, value = self._metrics[0], self._values.get(self._metrics[0].name)
        shown = metric.text(value) if value is not None else f"{metric.label or metric.title} -"
        parts = [(shown, "bold"), (GAP, ""), (f"smoothed {metric.number(self._curve.smoothed)}", "")]
        if width >= 70:
            parts += [(GAP, ""), (f"first {metric.number(self._curve.first)}", "dim")]
        room = width - sum(cell_len(text) for text, _ in parts) - len(GAP)
        if room >= LEAST_CURVE_CELLS:
            curve = sparkline(self._curve.points(room), self._glyphs.blocks)
            parts += [(GAP, ""), (curve, "cyan")]
        return Text.assemble(*parts)

    def _now(self, memory: str) -> list[str]:
        values = self._values
        fields = [f"lr {values['lr']:.2e}"] if _is_number(values.get("lr")) else []
        if values.get("tokens_per_second"):
            fields.append(f"{amount(values['tokens_per_second'])} tok/s")
        if values.get("mfu"):
            fields.append(f"mfu {values['mfu']:.0%}")
        fields += [memory] if memory else []
        return fields + ([f"grad norm {values['grad_norm']:.2f}"] if _is_number(values.get("grad_norm")) else [])

    def _quality(self) -> list[str]:
        """The held-out values, with the best of the first, then the other values of the step."""
        held_out = [metric for metric in self._metrics if metric.held_out and metric.name in self._held_out]
        fields = [metric.text(self._held_out[metric.name]) for metric in held_out]
        if held_out and self._best is not None and self._best[0] < self._held_out[held_out[0].name]:
            fields.insert(1, f"best {held_out[0].number(self._best[0])} at {self._best[1]}")
        others = [metric for metric in self._metrics[1:] if not metric.held_out and not metric.group]
        return fields + [m.text(self._values[m.name]) for m in others if self._values.get(m.name) is not None]

    def _groups(self) -> list[list[str]]:
        """The groups of metrics, lists of numbers as bars from zero up."""
        groups: dict[str, list[str]] = {}
        for metric in self._metrics:
            value = self._values.get(metric.name)
            if metric.group and value is not None:
                groups.setdefault(metric.group, []).append(metric.text(value) + self._bars(value))
        return list(groups.values())

    def _bars(self, value: Any) -> str:
        if not isinstance(value, list) or not 2 <= len(value) <= MOST_EXPERTS or not all(map(_is_number, value)):
            return ""
        mean = math.fsum(value) / len(value)
        ratio = f"{GAP}max/mean {max(value) / mean:.2f}" if mean > 0 else ""
        return f" {bars(value, 0.0, max(value), self._glyphs.blocks)}{ratio}"

    def _flow(self, groups: Iterable[list[str]], width: int) -> list[Text]:
        """Fields on lines, a group beginning on the line of the one before where all of it fits there."""
        lines: list[str] = []
        for group in groups:
            padded = [self._pad(field) for field in group]
            whole = GAP.join(padded)
            if lines and whole and cell_len(lines[-1]) + len(GAP) + cell_len(whole) <= width:
                lines[-1] += GAP + whole
                continue
            fresh = True
            for field in padded:
                if not fresh and cell_len(lines[-1]) + len(GAP) + cell_len(field.rstrip()) <= width:
                    lines[-1] += GAP + field
                else:
                    lines.append(field)
                fresh = False
        return [Text(line.rstrip()) for line in lines]

    def _pad(self, field: str) -> str:
        """The field as wide as it ever was. Its words tell which it is: those before its number, else the last."""
        key = NUMBER.sub("", field) or field.split()[-1]
        self._widest[key] = max(self._widest.get(key, 0), cell_len(field))
        return field + " " * (self._widest[key] - cell_len(field))

    def _sample_lines(self, width: int, rows: int) -> list[Text]:
        if rows < 1 or not self._sample:
            return []
        label = "sample: "
        first, rest = cut_cells(self._sample, width - len(label))
        lines = [Text.assemble((label, "dim"), first)]
        if rest and rows > 1:
            second, rest = cut_cells(rest.lstrip(), width - len(label))
            lines.append(Text(" " * len(label) + second))
        if rest:
            lines[-1].truncate(width - cell_len(self._glyphs.more), overflow="crop")
            lines[-1].append(self._glyphs.more)
        return lines


def read_past(path: Path, before: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of steps below `before`; what cannot be read is left out."""
    found = []
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    values = json.loads(line)
                    if int(values["step"]) < before:
                        found.append(values)
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        return []
    return found


def plain(text: str) -> str:
    """The text on one line, without what has no cell of its own: control and format characters, variation selectors."""
    flat = " ".join(text.split())
    return "".join(c for c in flat if unicodedata.category(c) not in FORMAT_CHARACTERS and not "︀" <= c <= "️")


def cut_cells(text: str, cells: int) -> tuple[str, str]:
    """`text` cut after at most `cells` cells; a wide character is never halved."""
    used = 0
    for index, character in enumerate(text):
        used += cell_len(character)
        if used > cells:
            return text[:index], text[index:]
    return text, ""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
