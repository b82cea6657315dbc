"""`mmcli runs plot` and `compare`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcli.cli.options import AsJson, RunsDir

if TYPE_CHECKING:
    from mmcli.report.scale import Chart

SHOWN_VALUE = 32  # characters of a value in a comparison


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run number, name, folder, or latest:STAGE.")],
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Value to plot, such as lr; default: loss and held-out loss.")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            "--x", metavar="steps|tokens|time", help="Horizontal axis; default: steps, with --reference tokens."
        ),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Also draw how its preset learned the built-in corpus: is the loss normal?"),
    ] = False,
    width: Annotated[int | None, typer.Option(min=30, help="Columns; default: those of the terminal.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an SVG file instead.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a PNG file instead (matplotlib).")] = None,
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Plot the loss of runs in the terminal: smoothed lines, and held-out values as points.

    Example: mmcli runs plot 3 7 --x time; mmcli runs plot latest --reference
    """
    from mmcli.cli.chart import print_chart
    from mmcli.cli.console import err, out, print_json
    from mmcli.errors import UserError, did_you_mean
    from mmcli.find import find_run
    from mmcli.report.curves import AXES
    from mmcli.report.overview import plot_runs
    from mmcli.report.reference import plot_with_reference

    if x is not None and x not in AXES:
        raise UserError(f'--x "{x}" is not one of {", ".join(AXES)}', did_you_mean(x, list(AXES)))
    found = [find_run(ref, runs_dir) for ref in dict.fromkeys(runs)]
    notes: tuple[str, ...] = ()
    if not reference:
        chart = plot_runs(found, metric, x or "steps")  # type: ignore[arg-type]
    elif len(found) == 1:
        chart, notes = plot_with_reference(found[0], metric, x or "tokens")  # type: ignore[arg-type]
    else:
        raise UserError(f"--reference compares one run, not {len(found)}", f"name one: {found[0].number} --reference")
    in_terminal = not json and svg is None and png is None
    if json:
        print_json([{"curve": each.label, "x": each.x, "y": each.y} for each in chart.curves])
    elif in_terminal:
        print_chart(chart, width)
    for note in notes:
        (out() if in_terminal else err()).print(note, markup=False)
    if json or in_terminal:
        return
    for path, content in _pictures(chart, svg, png):
        try:
            path.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "give a file in a folder that exists") from None
        err().print(f"wrote {path}", markup=False)


def _pictures(chart: Chart, svg: Path | None, png: Path | None) -> list[tuple[Path, bytes]]:
    from mmcli.report.png import png as draw_png
    from mmcli.report.svg import svg as draw_svg

    found = [(svg, draw_svg(chart).encode())] if svg is not None else []
    return [*found, (png, draw_png(chart))] if png is not None else found


def compare(
    run: Annotated[str, typer.Argument(help="Run number, name, folder, or latest:STAGE.")],
    other: Annotated[str, typer.Argument(help="The run to compare it with.")],
    runs_dir: RunsDir = Path("runs"),
    json: AsJson = False,
) -> None:
    """Compare two runs: where their configurations differ, and their results.

    Example: mmcli runs compare 3 7
    """
    from rich.table import Table

    from mmcli.cli.console import out, print_json
    from mmcli.find import find_run
    from mmcli.report.overview import compare_runs

    found = compare_runs(find_run(run, runs_dir), find_run(other, runs_dir))
    names = [each.name for each in found.runs]
    parts = {"config": found.config, "results": found.results}
    if json:
        rows = {title: {each.key: list(each.values) for each in part} for title, part in parts.items()}
        print_json({"runs": names, **rows})
        return
    for title, part in parts.items():
        table = Table(box=None, pad_edge=False, title=None)
        for name in (title, *names):
            table.add_column(name, overflow="fold")
        for each in part:
            table.add_row(each.key, *map(_shown, each.values))
        out().print(table)
        if not part:
            out().print("no difference")
        out().print()


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= SHOWN_VALUE else text[: SHOWN_VALUE - 1] + "…"
