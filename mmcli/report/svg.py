"""A chart as SVG: by itself in a file, or inside a page that gives the colours."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from mmcli.report.curves import Curve, thinned
from mmcli.report.scale import Chart, axis_numbers, axis_ticks, axis_title, chart_scales, numbers, ticks

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
FONT = "font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px"


@dataclass(frozen=True)
class Colours:
    """CSS colours of a chart."""

    text: str
    grid: str
    background: str  # empty: none
    series: tuple[str, ...]


PLAIN = Colours(  # Okabe and Ito (2008): told apart by colour-blind people too
    "#333", "#ddd", "#fff", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8b4513", "#555")
)
OF_PAGE = Colours("var(--text)", "var(--grid)", "", tuple(f"var(--s{i})" for i in range(8)))


def svg(chart: Chart, width: int = 720, height: int = 360, *, colours: Colours = PLAIN, legend: bool = True) -> str:
    """The chart as one `<svg>` element; labels are escaped."""
    x, y = chart_scales(chart)
    named = [each for each in chart.curves if each.label] if legend else []
    top = TOP + (18 if chart.title else 0) + 18 * len(named)
    right, bottom = width - RIGHT, height - BOTTOM + 18 * len(named)
    height += 18 * len(named)

    def at(curve: Curve) -> list[tuple[float, float]]:
        shown = thinned(curve)
        return [
            (LEFT + x.part(a) * (right - LEFT), bottom - y.part(b) * (bottom - top))
            for a, b in zip(shown.x, shown.y, strict=True)
        ]

    title = escape(chart.title or "chart")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{title}" style="{FONT}">'
    ]
    if colours.background:
        parts.append(f'<rect width="{width}" height="{height}" style="fill:{colours.background}"/>')
    if chart.title:
        parts.append(_text(LEFT, 18, chart.title, colours, weight="font-weight:bold;"))
    for number, each in enumerate(named):
        row = TOP + (18 if chart.title else 0) + 18 * number + 6
        colour = _colour(each, colours)
        parts.append(
            f'<circle cx="{LEFT + 9}" cy="{row}" r="4" style="fill:{colour}"/>'
            if each.dots
            else f'<path d="M{LEFT} {row}h18" style="stroke:{colour};stroke-width:2;{_faint(each)}"/>'
        )
        parts.append(_text(LEFT + 24, row + 4, each.label, colours))
    values = ticks(y, max(2, (bottom - top) // 45))
    for value, label in zip(values, numbers(values, chart.format), strict=True):
        place = bottom - y.part(value) * (bottom - top)
        parts.append(f'<path d="M{LEFT} {place:.1f}H{right}" style="stroke:{colours.grid};stroke-width:1"/>')
        parts.append(_text(LEFT - 8, place + 4, label, colours, anchor="end"))
    places = axis_ticks(x, max(2, (right - LEFT) // 90), chart.axis)
    for value, label in zip(places, axis_numbers(places, chart.axis), strict=True):
        place = LEFT + x.part(value) * (right - LEFT)
        parts.append(f'<path d="M{place:.1f} {bottom}v5" style="stroke:{colours.text};stroke-width:1"/>')
        parts.append(_text(place, bottom + 18, label, colours, anchor="middle"))
    parts.append(f'<path d="M{LEFT} {bottom}H{right}" style="stroke:{colours.text};stroke-width:1"/>')
    parts.append(_text((LEFT + right) / 2, bottom + 34, axis_title(chart.axis), colours, anchor="middle"))
    for each in sorted(chart.curves, key=lambda one: (one.dots, not one.faint)):
        parts += _drawn(each, at(each), _colour(each, colours))
    return "\n".join([*parts, "</svg>"])


def _drawn(curve: Curve, places: list[tuple[float, float]], colour: str) -> list[str]:
    if curve.dots or len(places) == 1:
        return [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" style="fill:{colour}"/>' for a, b in places]
    if not places:
        return []
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    style = f"fill:none;stroke:{colour};stroke-width:{1 if curve.faint else 2};stroke-linejoin:round;{_faint(curve)}"
    return [f'<path d="{path}" style="{style}"/>']


def _faint(curve: Curve) -> str:
    return "stroke-opacity:.3;" if curve.faint else ""


def _colour(curve: Curve, colours: Colours) -> str:
    return colours.series[curve.series % len(colours.series)]


def _text(x: float, y: float, text: str, colours: Colours, *, anchor: str = "start", weight: str = "") -> str:
    style = f"fill:{colours.text};{weight}text-anchor:{anchor}"
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{escape(text)}</text>'
