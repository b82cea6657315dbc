"""What packages add trains on several ranks as on one: `mmcli continue`, and `--adapter lora`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TEXT = "\n\n".join(f"Line {i}: the cat {i * 7 % 101} sleeps in house {i % 17}." for i in range(300))
TINY = ["model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=400"]


def losses(runs: Path) -> list[tuple[Any, ...]]:
    """Of the newest run."""
    run = max(runs.glob("0*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("val_loss"), line.get("val_old_loss")) for line in lines]


def close(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> bool:
    return len(found) == len(wanted) and all(
        (a is None) == (b is None) and (a is None or a == pytest.approx(b, abs=1e-5))
        for own, other in zip(found, wanted, strict=True)
        for a, b in zip(own, other, strict=True)
    )


@pytest.fixture(scope="module")
def common(real: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that all runs here share; run 1 is a pretrained model."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "old.txt").write_text(TEXT)
    (folder / "new.txt").write_text(TEXT.replace("cat", "dog"))
    common = ["--seq-len", "64", "--precision", "fp32", "--runs-dir", str(folder / "runs"), "--data"]
    tiny = [word for setting in TINY for word in ("--set", setting)]
    done = real.mmcli_here("pretrain", "--steps", "4", "--batch-size", "4", *tiny, *common, str(folder / "old.txt"))
    assert done.returncode == 0, done.stderr
    return [*common, str(folder / "new.txt")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["continue", "--batch-size", "8"],
        ["pretrain", "--from", "1", "--batch-size", "5", "--adapter", "lora", "--lr", "1e-3"],
        ["pretrain", "--from", "1", "--batch-size", "5", "--adapter", "lora", "--lr", "1e-3", "--shard"],
    ],
    ids=["continue", "lora", "lora, weights split"],
)
def test_two_ranks_have_the_loss_of_one_process(real: Any, common: list[str], args: list[str]) -> None:
    runs = Path(common[common.index("--runs-dir") + 1])
    command = [*args, "--steps", "4", "--set", "train.eval_every=2", *common]
    done = real.mmcli_here(*[word for word in command if word != "--shard"])
    assert done.returncode == 0, done.stderr
    alone = losses(runs)
    done = real.mmcli(*command, "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert close(losses(runs), alone), (losses(runs), alone)
    if "lora" in args:
        assert (max(runs.glob("0*")) / "adapter" / "adapter_model.safetensors").is_file()
