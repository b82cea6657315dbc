"""A short run of each stage on a GPU, and one that resumes to the same bytes: `make test-cuda`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmcli.cli import run as mmcli
from mmcli.run import Run

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")]
SHAPE = ["--set", "model.dim=64", "--set", "model.n_layers=2", "--set", "model.n_heads=4"]
SHORT = ["--seq-len", "64", "--batch-size", "8", "--steps", "8", "--device", "cuda"]
CASES = {
    "dense": [],
    "experts": ["--set", "model.use_moe=true"],
    "muon": ["--optimizer", "muon"],
    "compiled": ["--compile", "on"],
}
each_case = pytest.mark.parametrize("case", CASES)


def write_text(folder: Path) -> list[str]:
    """Options that read a text of two thousand sentences."""
    (folder / "text.txt").write_text("\n".join(f"The cat {i} sat on mat {i * 7 % 31}." for i in range(2000)))
    return ["--data", str(folder / "text.txt")]


@each_case
def test_every_stage_trains(tmp_path: Path, case: str) -> None:
    data, extra = write_text(tmp_path), CASES[case]
    chats = [
        {"messages": [{"role": "user", "content": f"Where is {i}?"}, {"role": "assistant", "content": f"At {i}."}]}
        for i in range(200)
    ]
    pairs = [{"prompt": f"Where is {i}?", "chosen": f"At {i}.", "rejected": "I do not know."} for i in range(200)]
    for name, records in (("chat", chats), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    runs = ["--runs-dir", str(tmp_path / "runs")]
    later = [] if case == "experts" else extra
    assert mmcli(["tokenizer", "train", *data, "--vocab-size", "400", *runs]) == 0
    assert mmcli(["pretrain", *data, *SHAPE, *SHORT, *extra, *runs]) == 0
    assert mmcli(["sft", "--data", str(tmp_path / "chat.jsonl"), *SHORT, *later, *runs]) == 0
    assert mmcli(["dpo", "--data", str(tmp_path / "pairs.jsonl"), *SHORT, *later, *runs]) == 0
    for name in ("0002-pretrain-tiny", "0003-sft-tiny", "0004-dpo-tiny"):
        run = Run(tmp_path / "runs" / name)
        assert run.info()["state"] == "finished" and run.read_config("resolved.toml")["device"].startswith("cuda")
    asked = ["--prompt", "Where is 7?", "--max-new-tokens", "8", *runs]
    assert mmcli(["chat", "--device", "cuda", *asked]) == 0
    assert mmcli(["export", "onnx", *runs]) == 0


@each_case
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path: Path, case: str) -> None:
    data, runs = write_text(tmp_path), tmp_path / "runs"
    kept = ["--set", "train.checkpoint_every=4", "--set", "train.keep_checkpoints=9", "--set", "model.dropout=0.1"]
    assert mmcli(["tokenizer", "train", *data, "--vocab-size", "400", "--runs-dir", str(runs)]) == 0
    assert mmcli(["pretrain", *data, *SHAPE, *SHORT, *kept, *CASES[case], "--runs-dir", str(runs)]) == 0
    run = runs / "0002-pretrain-tiny"
    whole = (run / "model/model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints/step-000008")
    shutil.rmtree(run / "model")
    (run / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), "state": "stopped"}))
    assert mmcli(["resume", "2", "--runs-dir", str(runs)]) == 0
    assert (run / "model/model.safetensors").read_bytes() == whole
