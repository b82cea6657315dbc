"""`mmcli export onnx`: where it writes, what it says, and that a wrong export does not stay."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmcli.api import export_hf
from mmcli.cli.export import app
from mmcli.errors import MmcliError, UserError
from mmcli.export.graph import Graph
from mmcli.export.matrices import FORMATS
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.text.train import train_tokenizer

LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=64, init_std=0.1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = Run.create(tmp_path / "runs", "sft", "small")
    save_model(run.model, Transformer(CONFIG, seed=1), CONFIG, train_tokenizer(LINES * 3, vocab_size=380))
    return tmp_path / "runs"


def export(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["onnx", *arguments])


def test_the_newest_model_goes_into_its_run(runs: Path) -> None:
    done = export("--runs-dir", str(runs))
    assert done.exit_code == 0, done.output
    folder = runs / "0001-sft-small" / "export" / "onnx-fp32"
    assert (folder / "model.onnx").is_file()
    assert f"exporting 0001-sft-small to {folder}" in done.stderr
    lines = {line[:18].strip(): line[18:].strip() for line in done.stdout.splitlines() if line}
    assert "limit 0.0001" in lines["batch and single"]
    assert lines["logits, decode"].endswith("greatest difference; limit 0.0001")
    assert "equal" in lines["greedy tokens"] and "prompts of 32, 16, 3" in lines["greedy tokens"]
    for way in ("chunks", "tokens"):
        assert "limit +0.1%" in lines[f"perplexity, {way}"]
    assert lines["tokenizer"].startswith("9 of 9")
    assert json.loads((folder / "config.json").read_text())["mmcli_stage"] == "sft"
    assert f"verified: {folder}" in done.stdout


def test_json_is_one_document(runs: Path, tmp_path: Path) -> None:
    done = export("1", "--dtype", "int8", "--out", str(tmp_path / "mine"), "--json", "--runs-dir", str(runs))
    document = json.loads(done.stdout)
    assert document["model"] == "0001-sft-small" and document["folder"] == str(tmp_path / "mine")
    assert document["bytes"] == (tmp_path / "mine" / "model.onnx").stat().st_size
    proof = document["proof"]
    assert proof["dtype"] == "int8" and proof["logits_error"] > 0
    for each in proof["perplexity"].values():
        assert each["rise"] == pytest.approx(each["onnx"] / each["torch"] - 1)


def test_context_and_force_reach_the_export(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dataclasses.replace(FORMATS["int4"].limits, perplexity=-0.5)
    monkeypatch.setattr(FORMATS["int4"], "limits", limits)
    arguments = ["--dtype", "int4", "--context", "24", "--out", str(tmp_path / "mine"), "--runs-dir", str(runs)]
    refused = export(*arguments)
    assert isinstance(refused.exception, MmcliError) and "perplexity read in chunks rises" in refused.exception.what
    done = export(*arguments, "--force")
    assert done.exit_code == 0, done.output
    assert "kept by --force: perplexity read in chunks" in done.stderr
    assert f"kept: {tmp_path / 'mine'}" in done.stdout and "prompts of 12, 3" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)


def test_a_plain_folder_is_exported_into_itself(runs: Path) -> None:
    folder = (runs / "0001-sft-small" / "model").rename(runs.parent / "plain")
    done = export(str(folder), "--runs-dir", str(runs))
    assert done.exit_code == 0, done.output
    assert (folder / "onnx-fp32" / "model.onnx").is_file()


def test_an_export_that_differs_fails(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Graph.weight

    def wrong(self: Graph, name: str, values: np.ndarray) -> str:
        return store(self, name, values * np.float32(0.5) if name == "layers.0.mlp.down_proj.weight" else values)

    monkeypatch.setattr(Graph, "weight", wrong)
    done = export("--runs-dir", str(runs))
    assert isinstance(done.exception, MmcliError) and done.exception.exit_code == 1
    assert "layer 0 (feed-forward)" in done.exception.what
    assert list((runs / "0001-sft-small" / "export").iterdir()) == []


def test_what_cannot_be_exported_is_refused(runs: Path, tmp_path: Path) -> None:
    tokenizer = Run.create(runs, "tokenizer", "x")
    train_tokenizer(LINES * 3, vocab_size=380).save(tokenizer.model)
    done = export("2", "--runs-dir", str(runs))
    assert isinstance(done.exception, UserError) and "is a tokenizer without a model" in done.exception.what
    done = export("--runs-dir", str(tmp_path / "none"))
    assert isinstance(done.exception, UserError)


def test_gguf_goes_into_its_run_under_its_name(runs: Path) -> None:
    done = CliRunner().invoke(app, ["gguf", "--dtype", "q8_0", "--runs-dir", str(runs)])
    assert done.exit_code == 0, done.output
    path = runs / "0001-sft-small" / "export" / "0001-sft-small-q8_0.gguf"
    lines = {line[:18].strip(): line[18:].strip() for line in done.stdout.splitlines() if line}
    assert lines["weights"] == f"q8_0, {path.stat().st_size / 1e6:.1f} MB; tensors: 15 q8_0, 5 f32"
    assert lines["tokenizer"].startswith("9 of 9") and lines["architecture"] == "llama"
    assert "limit +2.0%" in lines["perplexity"] and f"verified: {path}" in done.stdout
    assert f"exporting 0001-sft-small to {path}" in done.stderr and path.with_suffix(".Modelfile").is_file()


def test_gguf_as_json(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.gguf"
    done = CliRunner().invoke(app, ["gguf", "1", "--out", str(out), "--json", "--runs-dir", str(runs)])
    document = json.loads(done.stdout)
    assert document["path"] == str(out) and document["dtype"] == "f16" and document["architecture"] == "llama"
    assert document["bytes"] == out.stat().st_size and abs(document["perplexity_rise"]) < 0.01
    assert document["modelfile"] == str(tmp_path / "mine.Modelfile")


def test_the_command_loads_nothing_heavy_before_it_works() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "gguf"}
    code = f"import sys, mmcli.cli.export, mmcli.cli.bench\nprint({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_model_card_goes_into_a_folder_for_the_hub(runs: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["hf", "--card", "--license", "mit", "--runs-dir", str(runs)])
    assert done.exit_code == 0, done.output
    folder = runs / "0001-sft-small" / "export" / "hf"
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: mit\n")
    plain = ["hf", str(folder), "--out", str(tmp_path / "again"), "--runs-dir", str(runs)]
    for wrong, what in ([["--card"], "is no run"], [["--license", "mit"], "--license without --card"]):
        with pytest.raises(UserError, match=what):
            CliRunner().invoke(app, [*plain, *wrong], catch_exceptions=False)
    with pytest.raises(UserError, match="is no run"):
        export_hf(folder, tmp_path / "again", card=True)
