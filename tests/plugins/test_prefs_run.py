"""Rewards of models, installed as a package: by name, in chat, and as the reward of `mmcli grpo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.errors import UserError
from mmcli.rewards import find_reward

TINY = ["model.dim=32", "model.n_layers=1", "model.n_heads=2", "model.vocab_size=400"]
SAY = [f"Say {number}." for number in range(24)]


@pytest.fixture(scope="module")
def place(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: a model that has seen next to nothing, and a reward model of it that likes one reply."""
    folder = tmp_path_factory.mktemp("prefs")
    (folder / "text.txt").write_text("\n\n".join(f"Line {n}: the cat sleeps in house {n % 17}." for n in range(200)))
    pairs = [{"prompt": say, "chosen": "aeiou aeiou", "rejected": "xyz xyz"} for say in SAY]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    talk = [{"question": say, "answer": "aeiou"} for say in SAY]
    (folder / "talk.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talk))
    common = ["--seq-len", "64", "--runs-dir", str(folder / "runs"), "--device", "cpu", "--batch-size", "8"]
    tiny = [word for setting in TINY for word in ("--set", setting)]
    for stage in (
        ["pretrain", "--data", str(folder / "text.txt"), "--steps", "2", *tiny],
        ["reward", "--data", str(folder / "pairs.jsonl"), "--steps", "12", "--lr", "1e-2", "--from", "1"],
    ):
        done = real.mmcli_here(*stage, *common)
        assert done.returncode == 0, done.stderr
    return folder


def chat(real: Any, place: Path, *more: str) -> Any:
    prompt = ["--prompt", "Say 3.", "--max-new-tokens", "4", "--seed", "5", "--temperature", "1.5", "--device", "cpu"]
    return real.mmcli_here("chat", "1", *prompt, "--runs-dir", str(place / "runs"), *more)


def test_the_best_of_several_replies_is_shown(real: Any, place: Path) -> None:
    done = chat(real, place, "--best-of", "4", "--reward", "model=latest:reward", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(set(found["rewards"])) > 1 and found["mode"] == "continue"
    with real.visible():
        assert find_reward("model=2", place / "runs").score is not None
    alone = [json.loads(chat(real, place, "--json", "--seed", str(seed)).stdout)["reply"] for seed in (5, 6, 7, 8)]
    assert found["reply"] == alone[max(range(4), key=lambda i: found["rewards"][i])]
    done = chat(real, place, "--best-of", "4", "--reward", "model=1")
    assert done.returncode == 2 and "is not a reward model" in done.stderr


def test_latest_is_the_newest_that_writes(real: Any, place: Path) -> None:
    done = real.mmcli_here("chat", "2", "--prompt", "Hi", "--runs-dir", str(place / "runs"))
    assert done.returncode == 2 and "0002-reward-tiny is a reward model" in done.stderr
    done = real.mmcli_here("chat", "--prompt", "Hi", "--max-new-tokens", "1", "--runs-dir", str(place / "runs"))
    assert done.returncode == 0 and "0001-pretrain-tiny" in done.stderr


def test_a_reward_takes_a_model_or_not(real: Any, see: Any, place: Path) -> None:
    see(real)
    for name, what in (
        ("model", "no model is named"),
        ("model=", "no model is named"),
        ("length=2", "length takes no model"),
        ("modle=2", 'there is no reward "modle"'),
        ("model=9", 'there is no run "9"'),
    ):
        with pytest.raises(UserError, match=what):
            find_reward(name, place / "runs")


def test_a_model_is_the_reward_of_grpo(real: Any, place: Path) -> None:
    sizes = ["--batch-size", "4", "--group-size", "4", "--max-new-tokens", "6", "--seq-len", "64", "--steps", "2"]
    asked = ["--data", str(place / "talk.jsonl"), "--from", "1", "--runs-dir", str(place / "runs"), "--device", "cpu"]
    done = real.mmcli_here("grpo", *asked, *sizes, "--reward", "model=latest:reward:0.5", "--reward", "length")
    assert done.returncode == 0, done.stderr
    [run] = (place / "runs").glob("*-grpo-*")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["reward"] == pytest.approx(0.5 * line["reward_model"] + line["reward_length"], abs=1e-5)
    kept = str(place / "runs" / "0002-reward-tiny" / "model")
    assert f'"model={kept}:0.5"' in (run / "resolved.toml").read_text()
    assert any(
        kept in part for part in json.loads((run / "inputs.json").read_text())["inputs"]["data/functions"]["parts"]
    )
