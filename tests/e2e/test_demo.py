"""`mmcli demo` from nothing to replies, in a few steps; started again, it takes what is done as done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
