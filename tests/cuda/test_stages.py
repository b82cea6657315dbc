"""A short run of each stage on a GPU, stopped and resumed to its end: `make test-cuda`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmcli.cli import run as mmcli
from mmcli.run import Run

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")]
SHAPE = ["--set", "model.dim=64", "--set", "model.n_layers=2", "--set", "model.n_heads=4"]
SHORT = ["--seq-len", "64", "--batch-size", "8", "--steps", "8", "--device", "cuda"]


@pytest.mark.parametrize("extra", [[], ["--set", "model.use_moe=true"], ["--optimizer", "muon"]], ids=str)
def test_every_stage_trains(tmp_path: Path, extra: list[str]) -> None:
    text = "\n".join(f"The cat {i} sat on mat {i * 7 % 31}." for i in range(2000))
    (tmp_path / "text.txt").write_text(text)
    chats = [
        {"messages": [{"role": "user", "content": f"Where is {i}?"}, {"role": "assistant", "content": f"At {i}."}]}
        for i in range(200)
    ]
    pairs = [{"prompt": f"Where is {i}?", "chosen": f"At {i}.", "rejected": "I do not know."} for i in range(200)]
    for name, records in (("chat", chats), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    runs = ["--runs-dir", str(tmp_path / "runs")]
    data = ["--data", str(tmp_path / "text.txt")]
    optim = extra if extra[:1] == ["--optimizer"] else []
    assert mmcli(["tokenizer", "train", *data, "--vocab-size", "400", *runs]) == 0
    assert mmcli(["pretrain", *data, *SHAPE, *SHORT, *extra, *runs]) == 0
    assert mmcli(["sft", "--data", str(tmp_path / "chat.jsonl"), *SHORT, *optim, *runs]) == 0
    assert mmcli(["dpo", "--data", str(tmp_path / "pairs.jsonl"), *SHORT, *optim, *runs]) == 0
    for name in ("0002-pretrain-tiny", "0003-sft-tiny", "0004-dpo-tiny"):
        run = Run(tmp_path / "runs" / name)
        assert run.info()["state"] == "finished" and run.read_config("resolved.toml")["device"].startswith("cuda")
