"""SFT and DPO, killed and resumed, end in the same bytes; DPO starts at ln 2."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMES = ("Ada", "Bo", "Cy", "Di", "小明", "小红")
PLACES = ("Rome", "Oslo", "Lima", "北京")
SHAPE = ["--set", "model.dim=32", "--set", "model.n_layers=2", "--set", "model.n_heads=4", "--set", "model.dropout=0.1"]
SMALL = ["--seq-len", "64", "--batch-size", "4", "--micro-batch", "2", "--set", "train.checkpoint_every=3"]


def mmcli(*argv: str, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmcli", *argv, "--runs-dir", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A runs folder with a pretrained and a fine-tuned model, and the files of both later stages."""
    root = tmp_path_factory.mktemp("stages")
    facts = [(name, place) for name in NAMES for place in PLACES]
    texts = [f"{name} lives in {place}. The home of {name} is {place}." for name, place in facts]
    (root / "text.txt").write_text("\n".join(texts * 3), encoding="utf-8")
    chats = [
        {"messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": f"In {p}."}]}
        for n, p in facts
    ]
    pairs = [
        {"prompt": f"Where is {n}?", "chosen": f"In {p}.", "rejected": f"I will not tell you where {n} is."}
        for n, p in facts
    ]
    for name, records in (("chat.jsonl", chats), ("pairs.jsonl", pairs)):
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (root / name).write_text("\n".join(lines), encoding="utf-8")
    runs = root / "runs"
    tokenizer = ["tokenizer", "train", "--data", str(root / "text.txt"), "--vocab-size", "400"]
    finish(mmcli(*tokenizer, runs=runs))
    finish(mmcli("pretrain", "--data", str(root / "text.txt"), *SHAPE, *SMALL, "--steps", "6", runs=runs))
    finish(mmcli("sft", "--data", str(root / "chat.jsonl"), *SMALL, "--steps", "12", "--lr", "1e-3", runs=runs))
    return root, runs, runs / "0003-sft-tiny"


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_and_resume(argv: list[str], runs: Path, number: int, after: int) -> Path:
    """Kill a run once its checkpoint `after` is there, resume it; its folder."""
    process = mmcli(*argv, runs=runs)
    for _ in range(2400):
        found = list(runs.glob(f"{number:04d}-*/checkpoints/step-{after:06d}"))
        if found:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    finish(mmcli("resume", str(number), runs=runs))
    return found[0].parents[1]


def same(one: Path, other: Path, keys: tuple[str, ...]) -> None:
    mine, theirs = lines_of(one), lines_of(other)
    assert [[line.get(key) for key in keys] for line in mine] == [[line.get(key) for key in keys] for line in theirs]
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


def test_sft_learns_and_resumes_to_the_same_bytes(prepared: tuple[Path, Path, Path]) -> None:
    root, runs, whole = prepared
    losses = [line["loss"] for line in lines_of(whole) if "loss" in line]
    assert losses[-1] < losses[0]
    argv = ["sft", "--data", str(root / "chat.jsonl"), *SMALL, "--steps", "12", "--lr", "1e-3"]
    resumed = stop_and_resume(argv, runs, 4, 6)
    same(whole, resumed, ("step", "loss", "val_loss"))


def test_dpo_starts_at_ln_2_widens_the_margin_and_resumes(prepared: tuple[Path, Path, Path]) -> None:
    root, runs, sft = prepared
    shapeless = [sft.name, "--set", "optim.lr=1e-3", "--steps", "12"]
    argv = ["dpo", "--data", str(root / "pairs.jsonl"), *SMALL, "--from", *shapeless]
    resumed = stop_and_resume(argv, runs, 5, 6)
    finish(mmcli(*argv, runs=runs))
    whole = runs / "0006-dpo-tiny"
    same(whole, resumed, ("step", "dpo_loss", "margin", "accuracy", "chosen_logp", "val_dpo_loss"))
    lines = [line for line in lines_of(whole) if "dpo_loss" in line]
    assert lines[-1]["margin"] > lines[0]["margin"]
    assert {"margin", "accuracy", "chosen_logp", "rejected_logp"} <= set(lines[0])


def test_without_dropout_the_first_dpo_loss_is_ln_2(prepared: tuple[Path, Path, Path], tmp_path: Path) -> None:
    root, _, _ = prepared
    runs = tmp_path / "runs"
    finish(mmcli("tokenizer", "train", "--data", str(root / "text.txt"), "--vocab-size", "400", runs=runs))
    plain = ["--set", "model.dropout=0.0"]
    finish(mmcli("pretrain", "--data", str(root / "text.txt"), *SHAPE, *plain, *SMALL, "--steps", "3", runs=runs))
    argv = ["dpo", "--data", str(root / "pairs.jsonl"), *SMALL, "--from", "latest:pretrain", "--steps", "2"]
    finish(mmcli(*argv, runs=runs))
    assert lines_of(runs / "0003-dpo-tiny")[0]["dpo_loss"] == pytest.approx(math.log(2.0), abs=1e-5)
