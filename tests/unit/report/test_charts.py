"""Curves of runs: read, smoothed, thinned, and drawn as characters and as SVG."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mmcli.errors import UserError
from mmcli.report.curves import Curve, curve, read_lines, smoothed, thinned
from mmcli.report.overview import compare_runs, plot_runs
from mmcli.report.scale import Chart, Scale, axis_numbers, axis_ticks, numbers, ticks
from mmcli.report.svg import svg
from mmcli.report.terminal import draw
from mmcli.run import Run
from mmcli.stage import Metric


def a_run(root: Path, losses: list[float], *, lr: float = 1e-3) -> Run:
    run = Run.create(root, "pretrain", "tiny")
    run.update(metrics=[asdict(Metric("loss")), asdict(Metric("val_loss", label="val"))], state="finished")
    lines = [
        {"step": i, "tokens": 10 * (i + 1), "elapsed_seconds": i / 2, "loss": loss} for i, loss in enumerate(losses)
    ]
    lines.append({"step": len(losses), "val_loss": losses[-1]})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.write_config({"optim": {"lr": lr}, "train": {"steps": len(losses)}})
    return run


def text(rows: list) -> list[str]:
    return ["".join(piece.text for piece in row) for row in rows]


def test_lines_that_are_no_tables_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 0, "loss": 1}\n[1]\n{"step": 1, "loss": null}\n7\n{"step": 2, "lo')
    lines = read_lines(tmp_path / "m")
    assert [line["step"] for line in lines] == [0, 1]
    assert curve(lines, "loss").y == (1.0,)
    assert read_lines(tmp_path / "none") == []


def test_a_curve_lies_on_each_axis(tmp_path: Path) -> None:
    lines = read_lines(a_run(tmp_path, [3.0, 2.0]).metrics)
    assert curve(lines, "loss").x == (0, 1)
    assert curve(lines, "loss", "tokens").x == (10, 20)
    assert curve(lines, "val_loss", "time").x == (0.5,)  # its line tells no time: that of the line before


def test_smoothing_is_unbiased_and_leaves_few_points_as_they_are() -> None:
    short = Curve("", (0.0, 1.0), (5.0, 1.0))
    assert smoothed(short) == short
    flat = Curve("", tuple(map(float, range(1000))), (2.0,) * 1000)
    assert smoothed(flat).y == pytest.approx(flat.y)
    noisy = replace(flat, y=tuple(float(i % 2) for i in range(1000)))
    assert all(0.4 < value < 0.6 for value in smoothed(noisy).y[100:])


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    y = [1.0] * 10_000
    y[4321] = 9.0
    small = thinned(Curve("", tuple(map(float, range(10_000))), tuple(y)), 300)
    assert len(small) <= 310 and 9.0 in small.y
    assert (small.x[0], small.x[-1]) == (0, 9999)


def test_ticks_are_round_and_times_are_round_in_minutes() -> None:
    assert ticks(Scale(0, 10), 6) == [0, 2, 4, 6, 8, 10]
    assert numbers(ticks(Scale(1.9, 2.3), 5)) == ["1.9", "2.0", "2.1", "2.2", "2.3"]
    assert numbers([0, 20e6, 40e6]) == ["0M", "20M", "40M"]
    assert numbers([0.0, 0.5], ".0%") == ["0%", "50%"]
    assert axis_numbers(axis_ticks(Scale(0, 400), 5, "time"), "time") == ["0s", "2m", "4m", "6m"]
    assert Scale.of([3.0]).low < 3.0 < Scale.of([3.0]).high


def test_a_line_falls_from_corner_to_corner() -> None:
    chart = Chart((Curve("", (0.0, 100.0), (1.0, 0.0)),))
    rows = text(draw(chart, 40, 10))
    assert rows[0].split("┤")[1][0] != " "
    assert rows[7][-1] != " " and rows[0][-1] == " "
    assert all(len(row) == 40 for row in rows[:9])
    assert rows[-1].split() == ["0", "100"]


def test_letters_tell_runs_apart_without_colours() -> None:
    one, other = Curve("", (0.0, 9.0), (1.0, 1.0)), Curve("", (0.0, 9.0), (0.0, 0.0), series=1)
    rows = text(draw(Chart((one, other, replace(other, x=(5.0,), y=(0.5,), dots=True))), 40, 8, letters=True))
    assert "aaaa" in rows[0] and "bbbb" in rows[5] and any("B" in row for row in rows[1:5])
    assert all(row.isascii() for row in rows)


@pytest.mark.parametrize("curves", [(), (Curve("", (), ()),), (Curve("", (0.0,), (0.0,)),)])
@pytest.mark.parametrize("width", [30, 60, 200])
def test_charts_of_almost_nothing_are_drawn(curves: tuple[Curve, ...], width: int) -> None:
    assert all(len(row) <= width for row in text(draw(Chart(curves), width, 10)))
    ET.fromstring(svg(Chart(curves)))


def test_svg_is_well_formed_and_escapes(tmp_path: Path) -> None:
    name = '<script>alert("1")</script>'
    drawn = svg(Chart((Curve(name, (0.0, 1.0), (1.0, 2.0)), Curve("v", (0.5,), (1.0,), dots=True)), title=name))
    root = ET.fromstring(drawn)
    assert "<script" not in drawn
    assert [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")].count(name) == 2
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2  # of the legend and of the point


def test_runs_are_plotted_by_their_headline_and_its_held_out_values(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, [3.0, 2.0]), a_run(tmp_path, [4.0, 1.0])]
    found = [(each.label, each.series, each.dots) for each in plot_runs(runs).curves]
    assert found == [
        ("0001-pretrain-tiny loss 2.000", 0, False),
        ("0001-pretrain-tiny val 2.000", 0, True),
        ("0002-pretrain-tiny loss 1.000", 1, False),
        ("0002-pretrain-tiny val 1.000", 1, True),
    ]
    with pytest.raises(UserError, match='0001-pretrain-tiny has no metric "los"') as refused:
        plot_runs(runs, "los")
    assert refused.value.fix == 'did you mean "loss"?'
    with pytest.raises(UserError, match="has no metrics to plot"):
        plot_runs([Run.create(tmp_path, "tokenizer", "t")])


def test_two_runs_are_compared(tmp_path: Path) -> None:
    one, other = a_run(tmp_path, [3.0, 2.0]), a_run(tmp_path, [4.0, 1.0], lr=2e-3)
    found = compare_runs(one, other)
    assert [(each.key, each.values) for each in found.config] == [("optim.lr", (1e-3, 2e-3))]
    assert {each.key: each.values for each in found.results}["loss"] == (2.0, 1.0)
