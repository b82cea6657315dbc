"""`mmcli plan STAGE`: what a training will take, from a few of its real steps, of which nothing is left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmcli import forecast
from mmcli.cli import run as mmcli
from mmcli.errors import UserError
from mmcli.forecast import parse_price
from mmcli.run import Run
from mmcli.train.updates import Updates

SHAPE = ["--set", "model.dim=32", "--set", "model.n_layers=1", "--set", "model.n_heads=4"]
SHORT = ["--seq-len", "64", "--batch-size", "4", "--precision", "fp32"]
G = 10**9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each stage, a tokenizer, and a model to start from."""
    root = tmp_path_factory.mktemp("plan")
    text = (f"The cat {i} sat on mat {i * 7 % 31}. 猫坐在垫子上。" for i in range(3000))
    (root / "text.txt").write_text("\n".join(text), encoding="utf-8")
    pairs = [{"prompt": f"Where is {i}?", "chosen": f"At {i}.", "rejected": "I do not know."} for i in range(300)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    runs = ["--runs-dir", str(root / "runs")]
    assert mmcli(["tokenizer", "train", "--data", str(root / "text.txt"), "--vocab-size", "400", *runs]) == 0
    data = ["--data", str(root / "text.txt")]
    assert mmcli(["pretrain", *data, *SHAPE, *SHORT, "--steps", "1", "--compile", "off", *runs]) == 0
    return root


def planned(root: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert mmcli(["plan", *argv, *SHORT, "--json", "--runs-dir", str(root / "runs")]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_pretraining_is_measured_and_leaves_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(root)
    found = planned(root, capsys, "pretrain", "--data", str(root / "text.txt"), *SHAPE, "--epochs", "2")
    assert everything(root) == before
    assert found["steps"] > 100 and 1.9 < found["epochs"] < 2.1
    assert 200 <= found["step_tokens"] <= 256
    assert found["tokens_per_second"] == pytest.approx(found["step_tokens"] / found["step_seconds"])
    assert found["seconds"] > found["steps"] * found["step_seconds"]
    assert found["parameters"] < 50_000 and found["disk_bytes"] > 10 * found["parameters"]
    assert found["share"] == 1.0 and found["fits"] and found["micro_batch"] == 4 and found["published"] is None


def test_of_a_large_corpus_a_part_tells_about_the_whole(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache and the steps that are measured are of a part; those that are told are of all."""
    small = planned(root, capsys, "pretrain", "--data", str(root / "text.txt"), *SHAPE)
    (root / "large.txt").write_text((root / "text.txt").read_text(encoding="utf-8") * 12, encoding="utf-8")
    monkeypatch.setattr(forecast, "PART_BYTES", (root / "large.txt").stat().st_size // 4)
    part = planned(root, capsys, "pretrain", "--data", str(root / "large.txt"), *SHAPE)
    assert part["share"] < 0.7
    assert part["steps"] == pytest.approx(12 * small["steps"], rel=0.15)
    assert small["data"]["bytes"] == (root / "text.txt").stat().st_size and small["data"]["documents"] == 3000
    for name in ("documents", "tokens", "cache_bytes", "rows"):
        assert part["data"][name] == pytest.approx(12 * small["data"][name], rel=0.15), name
    assert part["data"]["rows"] > part["data"]["tokens"] / 64 * 0.9 and part["data"]["shards"] == 1


def test_a_file_of_gigabytes_is_not_read_through(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is a hole of the disk that no reader would take for text; time, disk and shards are told by paper."""
    monkeypatch.setattr(forecast, "PART_BYTES", 300_000)
    text = (root / "text.txt").read_bytes()
    path = root / "huge.txt"
    with path.open("wb") as file:
        while file.tell() < 2_000_000:
            file.write(text + b"\n")
        file.truncate(100 * G)
    capsys.readouterr()
    argv = ["plan", "pretrain", "--data", str(path), *SHAPE, *SHORT, "--runs-dir", str(root / "runs")]
    assert mmcli(argv) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    path.unlink()
    assert re.search(r"data about 100(\.0)? GB: [\d,]{10,} documents, [\d,]{13,} tokens", shown), shown
    assert re.search(r"rows about [\d,]{11,} of 64 tokens in [\d,]{3,} shards", shown), shown
    assert re.search(r"tokenize about .* at [\d.]+ MB/s, once, to [\d.]+ GB of disk", shown), shown


def test_dpo_takes_its_model_from_the_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(root)
    argv = ("dpo", "--from", "latest:pretrain", "--tokenizer", "1", "--data", str(root / "pairs.jsonl"))
    found = planned(root, capsys, *argv, "--steps", "1000")
    assert found["steps"] == 1000 and found["step_tokens"] > 0 and everything(root) == before


def test_the_cost_is_that_of_the_time(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In lines of 80 columns; the reference of the preset is marked as published."""
    argv = ["plan", "pretrain", "--preset", "small", *SHAPE, *SHORT, "--data", str(root / "text.txt")]
    assert mmcli([*argv, "--price", "3600元/h", "--runs-dir", str(root / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert "元 at 3600元/h" in text and "2.1 h and 2.73 yuan on one RTX 3090 (published by MiniMind" in text
    assert "tokens/s" in text and "fits" in text and max(map(len, lines)) <= 80


def test_a_micro_batch_that_does_not_fit_is_halved_and_told(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Updates.backward

    def small(self: Updates, forward: Any, batch: Any, totals: Any) -> Any:
        if batch.ids_BT.shape[0] > 2:
            raise MemoryError
        return whole(self, forward, batch, totals)

    monkeypatch.setattr(Updates, "backward", small)
    found = planned(root, capsys, "pretrain", "--data", str(root / "text.txt"), *SHAPE)
    assert found["micro_batch"] == 2 and not found["fits"]


def test_what_a_killed_plan_left_is_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = root / "runs" / ".plan-killed"
    left.mkdir()
    (left / forecast.LOCK).touch()
    planned(root, capsys, "pretrain", "--data", str(root / "text.txt"), *SHAPE)
    assert not left.exists()
    assert {Run(path).number for path in (root / "runs").iterdir() if path.name[0] == "0"} == {1, 2}


@pytest.mark.parametrize(
    ("text", "amount", "shown"),
    [
        ("1.3/h", 1.3, "2.50"),
        ("1.3元/h", 1.3, "2.50元"),
        ("$0.40/h", 0.4, "$2.50"),
        ("2 EUR/h", 2.0, "2.50 EUR"),
        ("{0}1/h", None, ""),
        ("cheap", None, ""),
        ("1.3", None, ""),
    ],
)
def test_prices(text: str, amount: float | None, shown: str) -> None:
    if amount is None:
        with pytest.raises(UserError, match="not a price"):
            parse_price(text)
        return
    found, shape = parse_price(text)
    assert found == amount and shape.format(2.5) == shown


def test_a_stage_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["plan", "pretrian"]) == 2
    assert 'did you mean "pretrain"?' in capsys.readouterr().err
