"""The live screen of a training: what it shows, in every size of a terminal, and how it is redrawn."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from mmcli.cli import console as console_module
from mmcli.cli import run
from mmcli.cli.console import PlainReporter
from mmcli.cli.curve import BLOCKS, Curve, bars, sparkline
from mmcli.cli.live import LiveReporter, _Region
from mmcli.cli.screen import Glyphs, TrainingScreen, cut_cells, plain
from mmcli.stage import Metric

METRICS = (
    Metric("loss"),
    Metric("expert_load", ".0%", "experts", group="experts"),
    Metric("expert_entropy", ".2f", "H", group="experts"),
    Metric("val_loss", label="val"),
)
STEP = {"steps": 4000, "lr": 3e-4, "tokens_per_second": 12345.6, "mfu": 0.41, "elapsed_seconds": 61.0, "grad_norm": 0.5}
CHINESE = "从前，在一个遥远的村庄里，住着一位老人和他的小狗。" * 8
BUSY = "the machine is busy: steps take 5.2x as long (load 3.9 on 2 cores, python3 98%)"


def values(step: int, loss: float = 2.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, **STEP, "eta_seconds": 100.0, **more}


def screen(glyphs: Glyphs | None = None) -> TrainingScreen:
    """One that shows everything it can."""
    made = TrainingScreen(glyphs or Glyphs())
    for step in range(1, 300):
        more = {"val_loss": 2.0 + step / 100} if step % 100 == 1 else {}
        load = {"expert_load": [0.05, 0.45, 0.25, 0.25], "expert_entropy": 0.9}
        made.add(values(step, 8.0 - step / 50, busy=BUSY, **load, **more), METRICS)
    made.replace_sample(CHINESE)
    return made


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def console(stream: io.StringIO, width: int = 80, **options: Any) -> Console:
    shown: dict[str, Any] = {"file": stream, "force_terminal": True, "width": width, "height": 24, "highlight": False}
    return Console(**{**shown, "_environ": {"TERM": "xterm-256color"}, **options})


# The curve


def test_a_curve_keeps_the_whole_training_in_bounded_memory() -> None:
    curve = Curve(spans=64)
    for step in range(100_000):
        curve.add(float(step))
    assert len(curve.points(10_000)) < 128 and curve.added == 100_000
    points = curve.points(10)
    assert len(points) == 10 and points == sorted(points)
    assert points[0] == pytest.approx(5_000, rel=0.1) and points[-1] == pytest.approx(95_000, rel=0.1)
    assert curve.first == 0.0 and curve.smoothed == pytest.approx(100_000 - 50, abs=2)


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([]) == "" and sparkline([1.0, 1.0]) == BLOCKS[0] * 2
    assert sparkline([float(n) for n in range(8)]) == BLOCKS
    # First losses far above the rest do not flatten it.
    assert len(set(sparkline([9.0, 8.0, *(2.0 - n / 20 for n in range(20))])[2:])) >= 4
    assert bars([0.0, 0.5, 1.0], 0.0, 1.0, "_.-=+*#@") == "_+@"


# What is shown


@pytest.mark.parametrize("width", [12, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [2, 4, 8, 24, 60])
def test_the_lines_fit_the_terminal(width: int, height: int) -> None:
    lines = [line.plain for line in screen().lines(width, height, "memory 812.0MB, peak 1.1GB")]
    assert 1 <= len(lines) <= max(1, min(9, height // 2))
    assert all(cell_len(line) < width for line in lines)
    assert lines[0].startswith("step 299/4")


def test_everything_is_there_at_eighty_columns() -> None:
    lines = [line.plain for line in screen().lines(80, 24, "memory 812.0MB, peak 1.1GB")]
    assert lines[0].startswith("step 299/4000  ━━─") and lines[0].endswith("7%  1m01s  eta 1m40s")
    assert lines[1].startswith("loss 2.020  smoothed 2.9") and set(lines[1].rpartition(" ")[2]) <= set(BLOCKS)
    assert lines[2] == BUSY
    assert lines[3] == "val 4.010  best 2.010 at 0  experts 5-45% ▁█▅▅  max/mean 1.80  H0.90"
    assert lines[4] == "lr 3.00e-04  12.3k tok/s  mfu 41%  memory 812.0MB, peak 1.1GB  grad norm 0.50"[:79]
    assert lines[5].startswith("sample: 从前，") and lines[6].startswith("        ") and lines[6].endswith("…")


def test_a_low_terminal_shows_what_matters_most() -> None:
    shown = ["\n".join(line.plain for line in screen().lines(80, height)) for height in (2, 4, 6, 8)]
    assert [text.count("\n") + 1 for text in shown] == [1, 2, 3, 4]
    assert "busy" in shown[2] and "val 4.010" in shown[3]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = screen(Glyphs.of("latin-1")).lines(80, 24)
    assert all(line.plain.isascii() for line in lines if not line.plain.startswith(("sample", " ")))


def test_wide_characters_are_cut_by_cells() -> None:
    assert cut_cells("从前abc", 5) == ("从前a", "bc") and cut_cells("从前", 3) == ("从", "前")
    assert cut_cells("abc", 9) == ("abc", "")
    assert plain("a\x1b[31m\n b\u200d\ufe0f\u202ec") == "a[31m bc"


def test_a_resumed_training_begins_its_curve_with_the_past(tmp_path: Path) -> None:
    past = tmp_path / "metrics.jsonl"
    written = [{"step": n, "loss": 9.0 - n / 10} for n in range(60)]
    written[5]["val_loss"] = 1.5
    past.write_text("\n".join(json.dumps(each) for each in written) + "\nno json\n")
    resumed = TrainingScreen(Glyphs(), past)
    resumed.add(values(51, 1.0, val_loss=2.0), METRICS)  # step 50 anew: that of the file and what follows do not count
    lines = [line.plain for line in resumed.lines(120, 24)]
    assert "first 9.000" in lines[1] and len(lines[1].rpartition(" ")[2]) == 51
    assert "best 1.500 at 5" in lines[2]


def test_metrics_of_any_stage_are_shown() -> None:
    made = TrainingScreen(Glyphs())
    declared = (Metric("dpo_loss", label="loss"), Metric("margin"), Metric("val_accuracy", label="val acc"))
    made.add({"step": 1, "steps": None, "dpo_loss": None, "margin": 0.25, "val_accuracy": 0.5}, declared)
    text = "\n".join(line.plain for line in made.lines(80, 24))
    assert text.splitlines()[0] == "step 1" and "loss -" in text and "margin 0.250" in text and "val acc 0.500" in text


# How it is drawn


def test_samples_and_notes_stay_above_and_the_curve_at_the_end() -> None:
    stream = Terminal()
    reporter = LiveReporter(console(stream))
    for step in range(1, 30):
        reporter.step(values(step), METRICS)
    reporter.sample("One", " first\x1b[31m text")
    reporter.note("a checkpoint")
    reporter.sample("And", " a second")
    reporter.close()
    written = stream.getvalue()
    assert "\x1b[31m text" not in written
    *_, curve, sample, end = [*written.rpartition("\x1b[?25h")[2].splitlines(), ""]
    assert "loss 2.000" in curve and "And | a second" in sample and end == ""
    assert 0 < written.index("a checkpoint") < written.index("One | first[31m text")


def test_a_step_only_leaves_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    lines = TrainingScreen.lines
    monkeypatch.setattr(TrainingScreen, "lines", lambda *given: drawn.append(1) or lines(*given))
    reporter = LiveReporter(console(Terminal()))
    started = time.monotonic()
    for step in range(1, 2001):
        reporter.step(values(step), METRICS)
    elapsed = time.monotonic() - started
    reporter.close()
    assert len(drawn) <= 3 + 4 * elapsed


def test_what_a_narrower_terminal_wrapped_is_erased() -> None:
    stream = Terminal()
    shown = console(stream, 100)
    region = _Region(shown, lambda: screen().lines(shown.width, 24))
    region.start(refresh=True)
    height = len(screen().lines(100, 24))
    _, mark = stream.getvalue(), stream.tell()
    shown.width = 50
    region.refresh()
    drawn = [cell_len(line.plain) for line in screen().lines(100, 24)]
    rows = sum(-(-cells // 50) for cells in drawn)
    assert rows > height
    assert stream.getvalue()[mark:].count("\x1b[1A") == rows - 1
    region.stop()


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(**options: Any) -> bool:
        stream = Terminal()
        reporter = LiveReporter(console(stream, **options))
        for step in range(1, 30):
            reporter.step(values(step, busy=BUSY), METRICS)
        reporter.warn("something")
        reporter.close()
        return any(f"\x1b[{code}m" in stream.getvalue() for code in (32, 33, 36))

    assert colours()
    assert not colours(_environ={"TERM": "xterm-256color", "NO_COLOR": "1"})


def test_a_busy_machine_is_one_plain_line_every_few_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter()
    for step in range(1, 20):
        reporter.step(values(step, busy=BUSY), METRICS)
    assert capsys.readouterr().err.splitlines().count(BUSY) == 1


def test_an_error_ends_what_is_redrawn_before_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console_module, "_reporters", [])  # none that another test left open
    monkeypatch.setattr(PlainReporter, "close", lambda self: print("closed", file=sys.stderr))
    assert run(["tokenizer", "train", "--data", "/no/such/file"]) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "closed" and second.startswith("error:")
