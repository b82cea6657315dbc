"""docs/guides/python.md: its blocks run one after the other in one folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/guides/python.md"


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"The {('cat', 'dog', 'owl')[i % 3]} {i * 7 % 101} sleeps in house {i % 17}." for i in range(400)]
    Path("corpus.txt").write_text("\n\n".join(lines), encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out
    assert 'unknown key "train.step"' in printed or "train.step" in printed
    assert len(re.findall(r"^\d \d ", printed, re.MULTILINE)) == 6  # two samples of three prompts
    losses = [float(value) for value in re.findall(r"^\d (\d+\.\d+)$", printed, re.MULTILINE)]
    assert len(losses) == 5 and losses[-1] < losses[0]
