"""`mmcli demo` from nothing to replies, in a few steps; started again, it takes what is done as done."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli.cli import demo_view as view

SHORT = ["--pretrain-steps", "4", "--sft-steps", "3", "--dpo-steps", "2", "--limit", "1", "--json"]


def demo(runs: Path, *more: str) -> tuple[dict[str, object], str]:
    command = [sys.executable, "-m", "mmcli", "demo", *SHORT, "--runs-dir", str(runs), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_demo_goes_the_whole_way_and_is_resumable(tmp_path: Path) -> None:
    result, said = demo(tmp_path)
    assert result["runs"] == {
        "tokenizer": "0001-tokenizer-demo",
        "pretrain": "0002-pretrain-demo",
        "sft": "0003-sft-demo",
        "dpo": "0004-dpo-demo",
    }
    scores = result["scores"]
    assert isinstance(scores, dict) and set(scores) == {"pretrain", "sft", "dpo", "dpo, ONNX int8"}
    assert all(len(score["families"]) == 16 == score["questions"] for score in scores.values())
    assert isinstance(result["preferred"], dict) and set(result["preferred"]) == {"sft", "dpo"}
    assert "verified: perplexity" in said and re.search(r"About \d+m\S* on this machine", said)
    assert isinstance(result["said"], list) and len(result["said"]) == len(view.ASKED)
    assert (tmp_path / "0004-dpo-demo/report.html").is_file()
    again, said = demo(tmp_path)
    assert said.startswith("the demo is done") and again == result
    (tmp_path / "demo.json").unlink()  # as if it was ended after the last stage
    once_more, said = demo(tmp_path)
    assert said.count("done") == 5 and once_more["scores"] == scores


@pytest.mark.parametrize("on_path", [True, False])
def test_it_ends_with_a_command_that_works_here(
    on_path: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` has mmcli in .venv/bin, which is not on PATH."""
    monkeypatch.setattr(sys, "argv", [".venv/bin/mmcli", "demo"])
    monkeypatch.setattr(shutil, "which", lambda name: name if on_path else None)
    monkeypatch.setattr("mmcli.cli.chart.print_chart", lambda *given, **more: None)
    monkeypatch.setattr("mmcli.find.find_run", lambda *given: None)
    monkeypatch.setattr("mmcli.report.overview.plot_runs", lambda *given: None)
    score = {"score": 0.5, "questions": 2, "families": {"facts": 0.5}}
    facts = view.Facts({"pretrain": "0002-pretrain-demo", "dpo": "0004-dpo-demo"}, {"dpo": score}, {}, [], 10**6, 600.0)
    for runs, where in ((Path("runs"), ""), (Path("my runs"), " --runs-dir 'my runs'")):
        view.show(facts, runs)
        program = "mmcli" if on_path else ".venv/bin/mmcli"
        said = capsys.readouterr().out
        assert f"talk to it: {program} chat{where}\n" in said
        assert "your own model: 1.0M parameters, 10m00s, 50% of 2 questions" in said


def test_tool_calls_are_run() -> None:
    def call(expression: str) -> str:
        return f'<tool_call>\n{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}\n</tool_call>'

    assert [view.calculate(call(each)) for each in ("23 * 47", "120 + 7", "3-10")] == ["1081", "127", "-7"]
    for reply in ("23 * 47 = 1081", call("2 ** 9"), call("__import__"), "<tool_call>{}</tool_call>"):
        assert view.calculate(reply) is None
