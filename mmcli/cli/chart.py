"""A chart of curves in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from mmcli.report.scale import Chart

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
HEIGHT = 18  # rows of a chart


def print_chart(chart: Chart, width: int | None, height: int = HEIGHT, console: Console | None = None) -> None:
    """Draw a chart in the terminal, `width` columns wide (None: all of it)."""
    from rich.text import Text

    from mmcli.cli.console import out
    from mmcli.report.terminal import draw

    console = console or out()
    several = len({each.series for each in chart.curves}) > 1
    encoding = (console.encoding or "").lower().replace("-", "")
    letters = encoding != "utf8" or (several and (console.no_color or not console.is_terminal))
    for row in draw(chart, width or console.width, height, letters=letters):
        line = Text(no_wrap=True)
        for piece in row:
            line.append(piece.text, COLOURS[piece.series % len(COLOURS)] if piece.series is not None else "")
        console.print(line, soft_wrap=True)
    for each in chart.curves:
        letter = chr((ord("A") if each.dots else ord("a")) + each.series % 26)
        mark = letter if letters else "●" if each.dots else "━"
        console.print(Text(f"{mark} {each.label}", COLOURS[each.series % len(COLOURS)]), soft_wrap=True)
