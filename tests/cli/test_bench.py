"""`mmcli bench`: what it measures, and what it refuses to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmcli.cli.bench import app
from mmcli.cli.export import app as export_app
from mmcli.errors import UserError
from mmcli.generate import bench as bench_module
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.train import train_tokenizer

CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bench") / "runs"
    run = Run.create(folder, "pretrain", "small")
    save_model(run.model, Transformer(CONFIG, seed=1), CONFIG, train_tokenizer(["Hello, rain."] * 9, vocab_size=300))
    return str(folder)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def measured(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments, "--json")
    assert done.exit_code == 0, done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_decode_on_both_backends(runs: str) -> None:
    sizes = ["--prompt-tokens", "5", "--new-tokens", "7", "--repeats", "3", "--threads", "1"]
    refused = bench("decode", "--backend", "onnx", *sizes, "--runs-dir", runs).exception
    assert isinstance(refused, UserError) and refused.fix == "make it: mmcli export onnx latest"
    assert CliRunner().invoke(export_app, ["onnx", "--runs-dir", runs]).exit_code == 0
    for backend in ("torch", "onnx"):
        result = measured("decode", "--backend", backend, *sizes, "--runs-dir", runs)
        assert (result["bench"], result["model"], result["backend"]) == ("decode", "0001-pretrain-small", backend)
        assert (result["prompt_tokens"], result["new_tokens"], result["repeats"]) == (5, 7, 3)
        assert 0 < result["slowest"] <= result["tokens_per_second"] <= result["fastest"]
        assert result["first_token_seconds"] > 0 and result["load_seconds"] > 0
        assert result["peak_memory_bytes"] > 10_000_000


def test_prefill(runs: str) -> None:
    result = measured("prefill", "--prompt-tokens", "40", "--repeats", "3", "--runs-dir", runs)
    assert result["tokens_per_second"] == pytest.approx(40 / result["first_token_seconds"])  # one repeat is the median


class Clockwork:
    """An engine whose calls take known times on a clock of its own."""

    vocab_size, max_len, slots = 10, 100, 1

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def truncate(self, slot: int, n: int) -> None:
        self.calls.append(f"truncate {n}")

    def prefill(self, slot: int, ids: list[int]) -> np.ndarray:
        self.now += 0.5
        return np.eye(10, dtype=np.float32)[3]

    def decode(self, slots: list[int], ids: list[int]) -> np.ndarray:
        assert ids == [3]
        self.now += 0.25
        return np.eye(10, dtype=np.float32)[3:4]


def test_the_figures_are_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Clockwork()
    monkeypatch.setattr(bench_module, "time", engine)
    speed = bench_module.bench_decode(engine, prompt_tokens=8, new_tokens=6, repeats=2)
    assert speed.tokens_per_second == pytest.approx(4.0)  # 6 tokens in 1.5 s: the prompt does not count
    assert speed.first_token_seconds == pytest.approx(0.5)
    assert engine.calls == ["truncate 0"] * 3  # one run to warm up
    assert bench_module.bench_prefill(engine, prompt_tokens=8, repeats=2).tokens_per_second == pytest.approx(16.0)


def test_train_of_a_preset_and_of_a_model(runs: str) -> None:
    shape = ["--batch-size", "2", "--seq-len", "16", "--repeats", "1", "--device", "cpu", "--precision", "fp32"]
    result = measured("train", "--preset", "tiny", *shape)
    assert (result["model"], result["precision"], result["batch_size"], result["seq_len"]) == ("tiny", "fp32", 2, 16)
    assert result["loss"] == pytest.approx(math.log(6400), abs=0.5)
    assert result["tokens_per_second"] == pytest.approx(2 * 16 / result["step_seconds"])
    assert measured("train", "1", *shape, "--runs-dir", runs)["loss"] == pytest.approx(math.log(400), abs=0.5)


def test_results_can_be_read_by_people(runs: str) -> None:
    done = bench("decode", "--prompt-tokens", "3", "--new-tokens", "2", "--repeats", "1", "--runs-dir", runs)
    lines = {line[:18].strip(): line[18:].strip() for line in done.stdout.splitlines()}
    assert float(lines["tokens per second"].replace(",", "")) > 0
    assert lines["first token"].endswith(" ms") and lines["peak memory"].endswith(" MB")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["decode", "--new-tokens", "0"], "leaves nothing to write"),
        (["decode", "--prompt-tokens", "60", "--new-tokens", "5"], "65 tokens, the context of"),
        (["prefill", "--prompt-tokens", "0"], "0 tokens"),
        (["prefill", "--threads", "0", "--prompt-tokens", "5"], "--threads 0"),
        (["prefill", "--repeats", "0", "--prompt-tokens", "5"], "repeats = 0"),
        (["train", "1", "--preset", "tiny"], "both the model 1 and --preset tiny"),
        (["train", "1", "--seq-len", "65"], "rows of 65 tokens"),
        (["train", "1", "--batch-size", "0", "--seq-len", "8"], "0 rows"),
    ],
)
def test_what_cannot_be_measured_is_refused(runs: str, arguments: list[str], what: str) -> None:
    refused = bench(*arguments, "--runs-dir", runs).exception
    assert isinstance(refused, UserError) and what in refused.what
