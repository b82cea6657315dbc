"""metrics.jsonl: a line a step, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from pathlib import Path

from mmcli.train.metrics import MetricsFile


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_line_is_there_at_once_and_valid_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", from_step=0)
    file.write({"step": 0, "loss": float("nan"), "lr": float("inf"), "load": [0.5, 0.5], "tokens": 3})
    text = (tmp_path / "metrics.jsonl").read_text()  # before the file is closed
    assert text.endswith("\n")
    assert json.loads(text) == {"step": 0, "loss": None, "lr": None, "load": [0.5, 0.5], "tokens": 3}
    file.close()


def test_lines_after_the_checkpoint_are_cut_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, from_step=0)
    for step in range(5):
        file.write({"step": step})
    file.close()
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    resumed = MetricsFile(path, from_step=3)
    assert path.read_bytes() == b"".join(kept)
    resumed.write({"step": 3})
    resumed.close()
    assert steps(path) == [0, 1, 2, 3]


def test_a_half_written_or_foreign_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnoise\n{"loss": 1.0}\n{"step": "x"}\n[1]\n{"step": 1}\n{"step": 2, "lo')
    MetricsFile(path, from_step=9).close()
    assert steps(path) == [0, 1]
    path.write_text('{"step": 0}\n{"step": 1}')  # whole, but its line never ended
    MetricsFile(path, from_step=9).close()
    assert steps(path) == [0]
