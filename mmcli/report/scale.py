"""Axes: the range of a chart, round ticks, and how their numbers are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmcli.report.curves import AXES, Axis, Curve


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    curves: tuple[Curve, ...]
    axis: Axis = "steps"
    title: str = ""
    format: str = ""  # format spec of the values, such as ".0%"; by default as many digits as the ticks take


@dataclass(frozen=True)
class Scale:
    """A range of values, wider than a point."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """The range of these values (0 to 1 where there are none)."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            margin = abs(low) * 0.05 or 0.5
            low, high = low - margin, high + margin
        return cls(low, high)

    def part(self, value: float) -> float:
        """The place of a value: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def chart_scales(chart: Chart) -> tuple[Scale, Scale]:
    """The ranges of x and y."""
    x = Scale.of([value for each in chart.curves for value in each.x])
    return x, Scale.of([value for each in chart.curves for value in each.y])


def ticks(scale: Scale, count: int) -> list[float]:
    """At most `count` round values (1, 2 or 5 times a power of ten apart) inside a range."""
    rough = (scale.high - scale.low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first = math.ceil(scale.low / step - 1e-9)
        last = math.floor(scale.high / step + 1e-9)
        if last - first + 1 <= count:
            break
    return [index * step for index in range(first, last + 1)]


def numbers(values: Sequence[float], format_spec: str = "") -> list[str]:
    """Values as their axis writes them: all with the digits that their distance takes; large ones with k, M, G."""
    if format_spec.endswith("%"):
        return [format(value, format_spec) for value in values]
    size = max((abs(value) for value in values), default=0.0)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= 10 * u), (1.0, ""))
    gaps = [abs(b - a) for a, b in itertools.pairwise(values)] or [size or 1.0]
    gap = min(gaps) / unit
    if 0 < gap < 1e-4:
        return [f"{value / unit:.1e}{suffix}" for value in values]
    digits = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap else 0
    return [f"{value / unit:.{digits}f}{suffix}" for value in values]


def axis_ticks(scale: Scale, count: int, axis: Axis) -> list[float]:
    """At most `count` round places on the x axis; of time, round in minutes or hours where it is long."""
    span = scale.high - scale.low if axis == "time" else 0.0
    unit = 3600.0 if span >= 7200 else 60.0 if span >= 120 else 1.0
    return [value * unit for value in ticks(Scale(scale.low / unit, scale.high / unit), count)]


def axis_numbers(values: Sequence[float], axis: Axis) -> list[str]:
    """Places on the x axis in words; times as 2h05m."""
    if axis != "time":
        return numbers(values)
    return [_time(value) for value in values]


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:g}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole % 60 else f"{whole // 60}m"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m" if whole % 3600 >= 60 else f"{whole // 3600}h"


def axis_title(axis: Axis) -> str:
    """What the x axis counts."""
    return {"steps": "step", "tokens": "tokens", "time": "time"}[axis] if axis in AXES else axis
