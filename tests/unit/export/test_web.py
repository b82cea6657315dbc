"""`mmcli export web` without a browser: what it writes, where its runtime comes from, what it refuses."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmcli.cli.export import app
from mmcli.errors import MmcliError, UserError
from mmcli.export.check import check_export
from mmcli.export.locate import refuse_foreign
from mmcli.export.matrices import FORMATS
from mmcli.export.web.folder import PAGE, SERVER_MARK, browser_page
from mmcli.export.web.layout import WEB_DTYPES
from mmcli.export.web.runtime import FILES, HOW, copy_runtime
from mmcli.manifest import refuse_damaged
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.run import Run
from mmcli.stage import Silent
from mmcli.text.train import train_tokenizer

LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]
CONFIG = ModelConfig(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=400, max_seq_len=64, init_std=0.1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = Run.create(tmp_path / "runs", "sft", "small")
    save_model(run.model, Transformer(CONFIG, seed=1), CONFIG, train_tokenizer(LINES * 3, vocab_size=380))
    return tmp_path / "runs"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with files of the names that the npm package has."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in FILES:
        (dist / name).write_text(name)
    return tmp_path / "package"


def test_the_folder_is_complete_and_sealed(runs: Path, package: Path) -> None:
    done = CliRunner().invoke(app, ["web", "--runs-dir", str(runs), "--runtime", str(package), "--json"])
    assert done.exit_code == 0, done.output
    folder = Path(json.loads(done.stdout)["folder"])
    assert folder == runs / "0001-sft-small" / "export" / "web-fp32"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {
        *("index.html", "web.json", "tokenizer.json", "tokenizer_config.json", "config.json"),
        *("generation_config.json", "export.json", "manifest.json", "onnx/model.onnx"),
        *("runtime/ort.js", "runtime/ort.wasm"),
        *(f"engine/{name}.js" for name in ("chat", "sampler", "tokenizer", "worker")),
    }
    refuse_damaged(folder)
    about = json.loads((folder / "web.json").read_text())
    assert about["name"] == "0001-sft-small" and about["context"] == 64
    assert about["bytes"] == (folder / about["graph"]).stat().st_size
    assert json.loads((folder / "export.json").read_text())["proof"]["greedy_equal"] > 0
    assert (folder / "runtime" / "ort.wasm").read_text() == "ort-wasm-simd-threaded.wasm"
    refuse_foreign(folder, "web")  # it may be replaced by another of its kind, and by nothing else
    with pytest.raises(UserError):
        refuse_foreign(folder, None)


def test_the_page_differs_in_one_line() -> None:
    ours, theirs = (text.splitlines() for text in (PAGE.read_text(encoding="utf-8"), browser_page()))
    assert [line for line in ours if line not in theirs] == [SERVER_MARK]


def test_every_format_has_a_name() -> None:
    assert WEB_DTYPES.keys() == FORMATS.keys()


def test_the_folder_can_be_checked_again(runs: Path, package: Path) -> None:
    done = CliRunner().invoke(app, ["web", "--runs-dir", str(runs), "--runtime", str(package), "--dtype", "int4"])
    assert done.exit_code == 0, done.output
    folder = runs / "0001-sft-small" / "export" / "web-int4"
    found = check_export(folder)
    assert found.model == runs / "0001-sft-small" / "model" and found.proof is not None
    assert found.bytes == (folder / "onnx" / "model_q4.onnx").stat().st_size
    (folder / "onnx" / "model_q4.onnx").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"onnx.model_q4.onnx"):
        check_export(folder)


def test_nothing_is_fetched_unasked(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a download"))
    done = CliRunner().invoke(app, ["web", "--runs-dir", str(runs)])
    assert isinstance(done.exception, UserError) and done.exception.fix == HOW
    assert "which mmcli does not carry" in done.exception.what
    assert not (runs / "0001-sft-small" / "export").exists()


def test_a_folder_without_the_files_and_two_sources_are_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no ort"):
        copy_runtime(tmp_path / "elsewhere", download=False, into=tmp_path / "runtime", report=Silent())
    with pytest.raises(UserError, match="two sources"):
        copy_runtime(package, download=True, into=tmp_path / "runtime", report=Silent())


def test_a_download_of_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror.example/npm/")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: asked.append(url) or io.BytesIO(b"something else"))
    with pytest.raises(MmcliError, match="SHA-512 differs"):
        copy_runtime(None, download=True, into=tmp_path / "runtime", report=Silent())
    assert asked == ["https://mirror.example/npm/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"]
    assert not any((tmp_path / "runtime").iterdir())
