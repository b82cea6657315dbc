"""`mmcli bench`: what it measures, and what it refuses to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmcli.cli.bench import app
from mmcli.cli.export import app as export_app
from mmcli.errors import MmcliError, UserError
from mmcli.export import compare as compare_module
from mmcli.export.compare import Contestant, Measured
from mmcli.generate import bench as bench_module
from mmcli.generate.profile import Operator
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
        (["compare", "--new-tokens", "0"], "leaves nothing to write"),
        (["1", "--repeats", "0"], "repeats = 0"),
        (["nothing"], 'there is no run "nothing"'),
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


@pytest.fixture(scope="module")
def exported(runs: str) -> str:
    """The same runs, the model exported in int8 too."""
    done = CliRunner().invoke(export_app, ["onnx", "--dtype", "int8", "--force", "--runs-dir", runs])
    assert done.exit_code == 0, done.exception
    return runs


SHORT = ["--prompt-tokens", "5", "--new-tokens", "6", "--repeats", "1", "--threads", "1"]


@pytest.mark.slow  # a process with torch for each engine
def test_a_model_without_a_command_is_compared(exported: str) -> None:
    result = measured("1", *SHORT, "--profile", "--runs-dir", exported)
    assert (result["bench"], result["threads"], result["new_tokens"]) == ("compare", 1, 6)
    by_name = {f"{each['engine']} {each['dtype']}": each for each in result["engines"]}
    assert {"torch fp32", "onnx int8"} <= by_name.keys() and result["left_out"] == []
    torch, int8 = by_name["torch fp32"], by_name["onnx int8"]
    assert int8["size_bytes"] < torch["size_bytes"]
    assert int8["perplexity"] == pytest.approx(torch["perplexity"], rel=0.05) and int8["perplexity"] > 1
    assert int8["peak_memory_bytes"] < torch["peak_memory_bytes"]  # no torch in it
    assert int8["tokens_per_second"] > 0 and int8["first_token_seconds"] > 0
    for each in (torch, int8):
        assert sum(one["share"] for one in each["operators"]) == pytest.approx(1.0)
    matrices = next(one for one in int8["operators"] if one["name"] == "MatMulNBits")
    assert matrices["calls"] == 2 * CONFIG.n_layers + 3 * CONFIG.n_layers + 1


@pytest.mark.slow
def test_exports_are_made_for_a_comparison_and_removed(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    folder = tmp_path / "model"
    save_model(
        folder, Transformer(CONFIG, seed=1), CONFIG, train_tokenizer(["Hello, rain."] * 9, vocab_size=300)
    )  # Chinese in parts of characters
    before = sorted(path.name for path in folder.iterdir())
    result = measured("compare", str(folder), *SHORT, "--export")
    names = [f"{each['engine']} {each['dtype']}" for each in result["engines"]]
    kinds = ["torch fp32", "onnx fp32", "onnx int8", "onnx int4", "llama.cpp f32", "llama.cpp q8_0", "llama.cpp q4_0"]
    assert sorted(names + [f"{each['engine']} {each['dtype']}" for each in result["left_out"]]) == sorted(names)
    assert [name for name in kinds if name in names] == names and {"torch fp32", "llama.cpp f32"} <= set(names)
    torch = result["engines"][0]["perplexity"]
    for each in result["engines"]:
        limit = 1e-3 if each["dtype"] in ("fp32", "f32") else 0.2
        assert each["perplexity"] == pytest.approx(torch, rel=limit), each
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_comparison_goes_on_without_what_fails(runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = bench_module.Speed(1234.5, 1000.0, 2000.0, 0.0123, 0.5, 98_000_000, 1)

    def measure(contestant: Any, model: Path, work: Any) -> Measured:
        if contestant.dtype == "int4":
            raise MmcliError("it ran out of memory", "free some")
        return Measured(
            1_500_000, 12.345, speed, [Operator("MatMul", 0.75, 0.0002, 41.0), Operator("Add", 0.25, 1e-5, 8)]
        )

    places = [Contestant("torch", "fp32", Path("m")), Contestant("onnx", "int4", Path("o"))]
    monkeypatch.setattr(compare_module, "find_contestants", lambda ref: places)
    monkeypatch.setattr(compare_module, "measure_alone", measure)
    done = bench("--new-tokens", "16", "--runs-dir", runs, "--threads", "2")
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert lines[0] == "0001-pretrain-small: 32 + 16 tokens, 2 threads" and max(map(len, lines)) <= 80
    assert lines[3].split() == ["torch", "fp32", "1.5", "MB", "12.35", "1,234.5", "12.3", "ms", "98", "MB", "0.50", "s"]
    assert ["MatMul", "75.0%", "0.200", "ms", "41"] in [line.split() for line in lines]
    assert "onnx int4 is left out: it ran out of memory" in done.stderr
    monkeypatch.setattr(compare_module, "find_contestants", lambda ref: places[1:])
    refused = bench("--new-tokens", "16", "--runs-dir", runs).exception
    assert isinstance(refused, MmcliError) and refused.what == "it ran out of memory"


def test_errors_come_out_of_the_process(tmp_path: Path) -> None:
    work = compare_module.Workload(1, 1, 1, 1, "cpu", False)
    with pytest.raises(MmcliError, match=r"config\.json"):
        compare_module.measure_alone(Contestant("onnx", "fp32", tmp_path), tmp_path, work)


def test_a_process_without_an_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "__name__", "os")  # where `answer` is not found
    work = compare_module.Workload(1, 1, 1, 1, "cpu", False)
    with pytest.raises(MmcliError, match="the process that ran onnx fp32 ended without an answer"):
        compare_module.measure_alone(Contestant("onnx", "fp32", tmp_path), tmp_path, work)


def test_profiles_of_both_engines(exported: str) -> None:
    sizes = ["--prompt-tokens", "5", "--repeats", "1", "--threads", "1", "--runs-dir", exported]
    torch = measured("decode", "--profile", "--new-tokens", "3", *sizes)["operators"]
    assert {"aten::addmm", "aten::mm"} & {each["name"] for each in torch}
    onnx = measured("prefill", "--profile", "--backend", "onnx", *sizes)["operators"]
    assert onnx == sorted(onnx, key=lambda each: -each["seconds"])
    attention = next(each for each in onnx if each["name"] == "GroupQueryAttention")
    assert attention["calls"] == CONFIG.n_layers and 0 < attention["share"] < 1
    shown = bench("decode", "--profile", "--backend", "onnx", "--new-tokens", "2", *sizes).stdout
    assert "operator " in shown and "time a token" in shown
