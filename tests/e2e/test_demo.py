"""`mmcli demo` from nothing to replies, in a few steps; started again, it takes what is done as done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli.cli.demo import _show

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
    assert "proven: perplexity" in said
    assert isinstance(result["replies"], list) and len(result["replies"]) == 3
    assert isinstance(result["continuations"], list) and len(result["continuations"]) == 3
    again, said = demo(tmp_path)
    assert said.count("done") >= 5
    assert again == result


@pytest.mark.parametrize("on_path", [True, False])
def test_it_ends_with_a_command_that_works_here(
    on_path: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` has mmcli in .venv/bin, which is not on PATH."""
    monkeypatch.setattr(sys, "argv", [".venv/bin/mmcli", "demo"])
    monkeypatch.setattr(shutil, "which", lambda name: name if on_path else None)
    scores = {"pretrain": {"score": 0.5, "families": {"facts": 0.5}}}
    for runs, where in ((Path("runs"), ""), (Path("my runs"), " --runs-dir 'my runs'")):
        _show(scores, [], [], runs)
        program = "mmcli" if on_path else ".venv/bin/mmcli"
        assert capsys.readouterr().out.endswith(f"talk to it: {program} chat{where}\n")
