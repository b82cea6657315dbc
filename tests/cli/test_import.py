"""`mmcli import` and `mmcli export hf`: what they write and say, and that the next commands find it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from mmcli.cli import export
from mmcli.cli.importing import app
from mmcli.errors import UserError
from mmcli.find import find_model
from mmcli.generate.conversation import is_chat_model
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run, list_runs
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=64, init_std=0.1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tmp_path / "theirs", Transformer(CONFIG, seed=1), CONFIG, train_tokenizer(LINES * 3, vocab_size=380))
    return tmp_path / "theirs"


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_model_becomes_a_finished_run(source: Path, tmp_path: Path) -> None:
    done = command(source, "--runs-dir", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    found = find_model("latest", tmp_path / "runs")
    assert found.run is not None and found.run.name == "0001-import-theirs"
    assert found.path == find_model("latest:import", tmp_path / "runs").path
    assert found.run.info()["state"] == "finished" and found.run.info()["source"] == str(source)
    assert f"imported: {found.path}" in done.stdout
    assert "transformers folder: 64 x 2 layers, 0.1M parameters" in done.stderr
    for name, tensor in load_model(source).state_dict().items():
        assert torch.equal(load_model(found.path).state_dict()[name], tensor), name
    tokenizer = Tokenizer.load(found.path)
    assert found.run.info()["tokenizer"] == tokenizer.fingerprint
    assert is_chat_model(found.path, tokenizer, stage=found.run.stage)


def test_a_folder_is_written_where_asked(source: Path, tmp_path: Path) -> None:
    done = command(source, "--out", tmp_path / "mine", "--json", "--runs-dir", tmp_path / "runs")
    document = json.loads(done.stdout)
    assert document["folder"] == str(tmp_path / "mine") and document["run"] is None
    assert document["parameters"] == sum(each.numel() for each in load_model(tmp_path / "mine").parameters())
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_takes_its_tokenizer_and_heads_from_the_person(source: Path, tmp_path: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), tmp_path / "full_sft.pth")
    runs = ["--runs-dir", tmp_path / "runs"]
    assert isinstance(command(tmp_path / "full_sft.pth", *runs).exception, UserError)
    given = ["--tokenizer", source, "--set", "model.n_heads=4", "--name", "mini"]
    done = command(tmp_path / "full_sft.pth", *given, *runs)
    assert done.exit_code == 0, done.output
    assert "4 query heads of 16" in done.stderr
    found = find_model("latest", tmp_path / "runs")
    assert found.label == "0001-import-mini"
    assert torch.equal(load_model(found.path).head_weight, load_model(source).head_weight)


def test_a_refused_import_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").write_bytes(b"no tensors")
    done = command(source, "--runs-dir", tmp_path / "runs")
    assert isinstance(done.exception, UserError) and "is damaged" in done.exception.what
    assert list_runs(tmp_path / "runs") == []


def test_options_that_fight_are_refused(source: Path, tmp_path: Path) -> None:
    done = command(source, "--out", tmp_path / "mine", "--name", "x")
    assert isinstance(done.exception, UserError) and "--name x" in done.exception.what
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = command(source, "--out", tmp_path / "mine")
    assert isinstance(done.exception, UserError) and "is not empty" in done.exception.what
    assert (tmp_path / "mine" / "thesis.txt").exists()


def export_hf(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export.app, ["hf", *(str(each) for each in arguments)])


@pytest.fixture
def runs(source: Path, tmp_path: Path) -> Path:
    run = Run.create(tmp_path / "runs", "sft", "small")
    source.rename(run.model)
    return tmp_path / "runs"


def test_an_export_goes_into_its_run(runs: Path) -> None:
    done = export_hf("--dtype", "bf16", "--runs-dir", runs)
    assert done.exit_code == 0, done.output
    folder = runs / "0001-sft-small" / "export" / "hf-bf16"
    lines = {line[:18].strip(): line[18:].strip() for line in done.stdout.splitlines() if line}
    assert (
        lines["weights"] == f"bf16, {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB, equal when read back"
    )
    assert lines["tokenizer"].startswith("9 of 9") and lines["model type"] == "llama"
    assert f"verified: {folder}" in done.stdout
    assert json.loads((folder / "config.json").read_text())["mmcli_stage"] == "sft"


def test_an_export_as_json(runs: Path, tmp_path: Path) -> None:
    done = export_hf("1", "--out", tmp_path / "hf", "--json", "--runs-dir", runs)
    document = json.loads(done.stdout)
    assert document["model"] == "0001-sft-small" and document["folder"] == str(tmp_path / "hf")
    assert document["dtype"] == "fp32" and document["perplexity_rise"] == 0.0
    assert document["bytes"] == (tmp_path / "hf" / "model.safetensors").stat().st_size


def test_a_tokenizer_is_no_model(runs: Path) -> None:
    train_tokenizer(LINES * 3, vocab_size=380).save(Run.create(runs, "tokenizer", "x").model)
    done = export_hf("2", "--runs-dir", runs)
    assert isinstance(done.exception, UserError) and "is a tokenizer without a model" in done.exception.what


def test_the_command_loads_nothing_heavy_before_it_works() -> None:
    code = "import sys, mmcli.cli.importing\nprint({'torch', 'gguf', 'numpy', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
