"""A chart as PNG, drawn by matplotlib (the extra `mmcli[png]`), which brings the fonts that a server may lack."""

from __future__ import annotations

import io

from mmcli.errors import UserError
from mmcli.report.curves import thinned
from mmcli.report.scale import Chart, axis_numbers, axis_ticks, axis_title, chart_scales, numbers, ticks
from mmcli.report.svg import PLAIN

DPI = 200


def png(chart: Chart, width: float = 7.2, height: float = 4.0) -> bytes:
    """The chart as a PNG file of so many inches, 200 pixels an inch.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        what = "PNG files need the package matplotlib, which is not installed"
        raise UserError(what, 'install it: pip install "mmcli[png]"; or give --svg FILE') from None
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for each in chart.curves:
        shown, colour = thinned(each), PLAIN.series[each.series % len(PLAIN.series)]
        style = {"linestyle": "none", "marker": "o", "markersize": 4} if each.dots else {"linewidth": 1.5}
        axes.plot(shown.x, shown.y, color=colour, label=each.label, **style)
    x, y = chart_scales(chart)
    places, values = axis_ticks(x, 8, chart.axis), ticks(y, 8)
    axes.set_xticks(places, axis_numbers(places, chart.axis))
    axes.set_yticks(values, numbers(values, chart.format))
    axes.set_xlabel(axis_title(chart.axis))
    axes.grid(axis="y", color=PLAIN.grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if any(each.label for each in chart.curves):
        axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
