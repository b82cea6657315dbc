"""`mmcli grpo`, installed as a package, on the shared loop: a reward rises, a run resumes to the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TINY = ["model.dim=32", "model.n_layers=1", "model.n_heads=2", "model.vocab_size=400"]
REWARD = "def vowels(attempt):\n    return sum(map(attempt.reply.count, 'aeiou')) / 8\n"
WATCHED = ("step", "policy_loss", "reward", "length", "advantage", "kl", "clip_share", "grad_norm")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reward, questions, and a model that has seen next to nothing."""
    folder = tmp_path_factory.mktemp("grpo")
    (folder / "my.py").write_text(REWARD)
    asked = [{"question": f"Say {n}.", "answer": "aeiou"} for n in range(24)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    tiny = [word for setting in TINY for word in ("--set", setting)]
    (folder / "text.txt").write_text("\n\n".join(f"Line {n}: the cat sleeps in house {n % 17}." for n in range(200)))
    common = ["--data", str(folder / "text.txt"), "--seq-len", "64", "--runs-dir", str(folder / "runs")]
    done = real.mmcli_here("pretrain", "--steps", "2", *tiny, *common)
    assert done.returncode == 0, done.stderr
    return folder


def argv(place: Path, *more: str) -> list[str]:
    sizes = ["--batch-size", "4", "--group-size", "6", "--max-new-tokens", "12", "--seq-len", "64"]
    start = ["--from", "1", "--lr", "1e-2", "--runs-dir", str(place / "runs"), "--data", str(place / "talk.jsonl")]
    return ["grpo", *start, *sizes, *more]


def test_the_reward_rises(real: Any, place: Path) -> None:
    mine = ["--reward", f"{place / 'my.py'}:vowels", "--reward", "length:0.01", "--steps", "15"]
    done = real.mmcli_here(*argv(place, *mine, "--name", "rises"))
    assert done.returncode == 0, done.stderr
    [run] = (place / "runs").glob("*-grpo-rises")
    found = [line for line in lines(run) if "reward" in line]
    first, last = (sum(line["reward"] for line in part) / 4 for part in (found[:4], found[-4:]))
    assert last > 1.25 * first
    assert {"reward_vowels", "reward_length", "length", "advantage", "entropy", "flat_groups"} <= found[0].keys()
    assert (run / "model" / "model.safetensors").is_file()


def test_a_run_with_several_updates_and_a_reference_resumes_to_the_same_bytes(
    real: Any, place: Path, tmp_path: Path
) -> None:
    often = ["--set", "train.checkpoint_every=1", "--set", "train.keep_checkpoints=9"]
    mine = ["--reward", f"{place / 'my.py'}:vowels", "--updates", "3", "--kl-coef", "0.1", "--steps", "8"]
    done = real.mmcli_here(*argv(place, *mine, *often, "--name", "whole"))
    assert done.returncode == 0, done.stderr
    [whole] = (place / "runs").glob("*-grpo-whole")
    assert any(line["clip_share"] > 0 for line in lines(whole) if "clip_share" in line)
    assert any(line["kl"] > 0 for line in lines(whole) if "kl" in line)
    shutil.copytree(place / "runs", tmp_path / "runs")
    stopped = tmp_path / "runs" / whole.name
    for late in (5, 6, 7, 8):  # in the middle of the replies of step 3
        shutil.rmtree(stopped / "checkpoints" / f"step-{late:06d}")
    (stopped / "rollouts" / "step-000006.safetensors").unlink()
    shutil.rmtree(stopped / "model")
    info = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**info, "state": "stopped"}))
    done = real.mmcli_here("grpo", "--resume", "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stderr and "not bit-exactly" not in done.stderr
    watched = [[tuple(line.get(key) for key in WATCHED) for line in lines(run)] for run in (whole, stopped)]
    assert watched[0] == watched[1]
    for name in ("model/model.safetensors", "checkpoints/step-000008/optimizer.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "what", "fix"),
    [
        (["--reward", "exact"], 'there is no reward "exact"', "exact-answer"),
        (["--reward", "none.py:score"], "there is no file", "check the path"),
        (["--group-size", "1"], "group_size = 1 is below 2", "give 2 or more"),
        (["--max-new-tokens", "0"], "max_new_tokens = 0 is below 1", "give 1 or more"),
    ],
)
def test_bad_values_give_two_lines(real: Any, place: Path, more: list[str], what: str, fix: str) -> None:
    done = real.mmcli_here(*argv(place, "--steps", "1", *more))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert what in said[-2] and fix in said[-1] and "Traceback" not in done.stderr


def test_a_reward_that_fails_ends_the_run_in_two_lines(real: Any, place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def score(attempt):\n    return attempt.nothing\n")
    done = real.mmcli_here(*argv(place, "--steps", "1", "--reward", f"{tmp_path / 'bad.py'}:score"))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert 'the reward "score" failed: AttributeError' in done.stderr and "(bad.py:2)" in done.stderr
