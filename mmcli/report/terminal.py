"""A chart in characters: Braille dots (two by four in a cell), or letters where colours cannot tell curves apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmcli.report.curves import Curve
from mmcli.report.scale import Chart, Scale, axis_numbers, axis_ticks, chart_scales, numbers, ticks

BRAILLE = 0x2800
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a cell's dots: [column][row]
POINT = "●"
LEAST_WIDTH = 30


@dataclass(frozen=True)
class Piece:
    """A text of a row, and the run whose colour it has (None: no curve)."""

    text: str
    series: int | None = None


Row = tuple[Piece, ...]


def draw(chart: Chart, width: int, height: int, *, letters: bool = False) -> list[Row]:
    """A chart of `width` columns and about `height` rows, axes included.

    Args:
        letters: draw plain letters: a, b, ... for the runs' lines and A, B, ... for their points.
    """
    x, y = chart_scales(chart)
    marks = ticks(y, max(2, height // 3))
    labels = numbers(marks, chart.format)
    margin = max((len(label) for label in labels), default=0) + 1
    columns, rows = max(LEAST_WIDTH, width) - margin - 1, max(3, height - 2)
    canvas = _Canvas(columns, rows, letters)
    for each in sorted(chart.curves, key=lambda one: one.dots):
        canvas.add(each, x, y)
    at = {_place(y.part(mark), rows): label for mark, label in zip(marks, labels, strict=True)}
    drawn: list[Row] = []
    for row, pieces in enumerate(canvas.rows()):
        label = at.get(row)
        edge = ("+" if letters else "┤") if label is not None else ("|" if letters else "│")
        drawn.append((Piece(f"{label or '':>{margin - 1}} {edge}"), *pieces))
    line, corner, tick = ("-", "+", "+") if letters else ("─", "└", "┬")
    places = axis_ticks(x, max(2, columns // 12), chart.axis)
    below, words = [line] * columns, [" "] * (columns + 8)
    free = 0
    for place, label in zip(places, axis_numbers(places, chart.axis), strict=True):
        column = min(columns - 1, round(x.part(place) * (columns - 1)))
        start = max(free, min(column - len(label) // 2, columns - len(label)))
        if start + len(label) > columns:
            continue
        below[column] = tick
        words[start : start + len(label)] = label
        free = start + len(label) + 1
    drawn.append((Piece(" " * margin + corner + "".join(below)),))
    drawn.append((Piece((" " * (margin + 1) + "".join(words)).rstrip()),))
    return drawn


def _place(part: float, rows: int) -> int:
    """The row of a part of the range, the highest being row 0."""
    return min(rows - 1, max(0, round((1.0 - part) * (rows - 1))))


class _Canvas:
    """Cells, each with dots or a letter, and the run that came there last."""

    def __init__(self, columns: int, rows: int, letters: bool) -> None:
        self._columns, self._rows, self._letters = columns, rows, letters
        self._dots = [[0] * columns for _ in range(rows)]
        self._marks = [[""] * columns for _ in range(rows)]
        self._series: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def add(self, curve: Curve, x: Scale, y: Scale) -> None:
        """Draw a curve: its points joined, or each by itself."""
        wide, high = (1, 1) if self._letters or curve.dots else (2, 4)
        places = [
            (round(x.part(a) * (self._columns * wide - 1)), round((1.0 - y.part(b)) * (self._rows * high - 1)))
            for a, b in zip(curve.x, curve.y, strict=True)
        ]
        if not curve.dots:
            places = [
                place for one, other in zip(places, places[1:] or places, strict=False) for place in _line(one, other)
            ]
        letter = chr((ord("A") if curve.dots else ord("a")) + curve.series % 26)
        for column, row in places:
            cell_row, cell_column = row // high, column // wide
            if wide == 1:
                self._marks[cell_row][cell_column] = letter if self._letters else POINT
            else:
                self._dots[cell_row][cell_column] |= BITS[column % 2][row % 4]
            self._series[cell_row][cell_column] = curve.series

    def rows(self) -> Iterator[list[Piece]]:
        """Each row in pieces of one colour."""
        for dots, marks, series in zip(self._dots, self._marks, self._series, strict=True):
            pieces: list[Piece] = []
            for dot, mark, of in zip(dots, marks, series, strict=True):
                text = mark or (chr(BRAILLE + dot) if dot else " ")
                if pieces and pieces[-1].series == of:
                    pieces[-1] = Piece(pieces[-1].text + text, of)
                else:
                    pieces.append(Piece(text, of))
            yield pieces


def _line(one: tuple[int, int], other: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The places on the way from one to the other (Bresenham)."""
    (x, y), (end_x, end_y) = one, other
    run, rise = abs(end_x - x), -abs(end_y - y)
    step_x, step_y = (1 if end_x > x else -1), (1 if end_y > y else -1)
    error = run + rise
    while True:
        yield x, y
        if (x, y) == (end_x, end_y):
            return
        twice = 2 * error
        if twice >= rise:
            error, x = error + rise, x + step_x
        if twice <= run:
            error, y = error + run, y + step_y
