"""Curves of a run, from the lines of its metrics.jsonl. No torch and no numpy here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Axis = Literal["steps", "tokens", "time"]
AXES: dict[str, str] = {"steps": "step", "tokens": "tokens", "time": "elapsed_seconds"}  # keys of a line
SMOOTHING = 40  # a curve is averaged over about this part of its points
SHOWN_POINTS = 600  # of a curve that is drawn


@dataclass(frozen=True)
class Curve:
    """Points of one value of a run, in the order of the x axis (steps, tokens or seconds)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    series: int = 0  # number of the run in a chart, which gives the colour
    dots: bool = False  # measured now and then: points instead of a line
    faint: bool = False  # in the background

    def __len__(self) -> int:
        return len(self.x)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The tables of a file of JSON lines; what is not one, such as the half-written last line of a killed run, is left
    out. Empty without the file."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    found.append(value)
    except OSError:
        return found
    return found


def last_values(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest value of each key."""
    values: dict[str, Any] = {}
    for line in lines:
        values.update(line)
    return values


def is_number(value: Any) -> bool:
    """True of a finite number; not of True and False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metric_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that have numbers, axes left out, in the order in which they first occur."""
    names = dict.fromkeys(key for line in lines for key, value in line.items() if is_number(value))
    return [name for name in names if name not in AXES.values()]


def curve(lines: Sequence[Mapping[str, Any]], name: str, axis: Axis = "steps", label: str | None = None) -> Curve:
    """The curve of one value; where a line does not tell its place on the axis, that of the line before it holds."""
    key, place = AXES[axis], 0.0
    x, y = [], []
    for line in lines:
        if is_number(line.get(key)):
            place = float(line[key])
        if is_number(line.get(name)):
            x.append(place)
            y.append(float(line[name]))
    return Curve(name if label is None else label, tuple(x), tuple(y))


def smoothed(raw: Curve) -> Curve:
    """An exponential average over about a fortieth of the points; the bias of its start is corrected, as in Adam."""
    keep = 1.0 - 1.0 / max(1.0, len(raw) / SMOOTHING)
    mean, weight, values = 0.0, 0.0, []
    for value in raw.y:
        mean = keep * mean + (1.0 - keep) * value
        weight = keep * weight + (1.0 - keep)
        values.append(mean / weight)
    return replace(raw, y=tuple(values))


def thinned(whole: Curve, points: int = SHOWN_POINTS) -> Curve:
    """At most about `points` points, the lowest and the highest of each stretch, so that no spike is lost."""
    if len(whole) <= points:
        return whole
    stretch = math.ceil(2 * len(whole) / points)
    kept: list[int] = []
    for start in range(0, len(whole), stretch):
        part = range(start, min(start + stretch, len(whole)))
        kept += sorted({min(part, key=whole.y.__getitem__), max(part, key=whole.y.__getitem__)})
    kept = sorted({0, *kept, len(whole) - 1})
    return replace(whole, x=tuple(whole.x[i] for i in kept), y=tuple(whole.y[i] for i in kept))
