"""`mmcli export check`: an old export, whole or damaged, beside its model or alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mmcli.cli.export import app
from mmcli.errors import MmcliError, UserError
from mmcli.export import onnx_folder
from mmcli.export.check import check_export
from mmcli.export.onnx_export import export_onnx
from mmcli.manifest import MANIFEST, write_manifest

Save = Callable[..., Path]


@pytest.fixture
def out(save: Save, tmp_path: Path) -> Path:
    return export_onnx(save(max_seq_len=32), tmp_path / "out", dtype="int8").folder


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments])


def test_a_whole_export_is_compared_again(out: Path) -> None:
    before = sorted(path.name for path in out.iterdir())
    done = check(str(out), "--json")
    assert done.exit_code == 0, (done.stderr, done.exception)
    document = json.loads(done.stdout)
    record = json.loads((out / "export.json").read_text())
    assert document["proof"]["logits_error"] == record["proof"]["logits_error"] and document["not_compared"] is None
    assert document["files"] == len(before) - 1 and document["model"] == str(out.parent / "model")
    assert sorted(path.name for path in out.iterdir()) == before
    assert f"verified: {out}" in check(str(out)).stdout


def test_an_export_that_is_moved_with_its_run_finds_its_model(out: Path, tmp_path: Path) -> None:
    for name in ("out", "model"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    found = check_export(tmp_path / "elsewhere" / "out")
    assert found.model == tmp_path / "elsewhere" / "model" and found.proof is not None


def test_without_its_model_the_files_alone_are_checked(out: Path) -> None:
    weights = load_file(out.parent / "model" / "model.safetensors")
    save_file(
        {**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, out.parent / "model/model.safetensors"
    )
    found = check_export(out)
    assert found.proof is None and "holds another model by now" in str(found.not_compared)
    shutil.rmtree(out.parent / "model")
    done = check(str(out))
    assert done.exit_code == 0 and "files" in done.stdout
    assert "is no longer at" in done.stderr


def test_every_damaged_file_is_named(out: Path) -> None:
    (out / "tokenizer.json").unlink()
    (out / "config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        check_export(out)
    assert "config.json is damaged" in caught.value.what and "tokenizer.json is missing" in caught.value.what
    assert caught.value.exit_code == 2
    (out / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing"):
        check_export(out)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not an ONNX export"):
            check_export(folder)


@pytest.mark.parametrize("place", ["../stolen", "link", "none", "short"])
def test_weights_outside_of_the_folder_are_refused(
    place: str, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_folder, "ONE_FILE_BYTES", 0)
    out = export_onnx(save(max_seq_len=32), tmp_path / "out").folder
    weights = (out / "model.onnx.data").read_bytes()
    (tmp_path / "stolen").write_bytes(weights)
    (out / "link").symlink_to(tmp_path / "stolen")
    (out / "short").write_bytes(weights[:-1])
    graph = onnx.load(out / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    (out / "model.onnx").write_bytes(graph.SerializeToString())
    (out / MANIFEST).unlink()
    write_manifest(out)
    with pytest.raises(UserError, match=r"outside the folder|missing or too short"):
        check_export(out)


def test_a_graph_that_computes_something_else_is_found_and_left(out: Path) -> None:
    graph = onnx.load(out / "model.onnx")
    norm = next(each for each in graph.graph.initializer if each.name == "layers.1.input_layernorm.weight")
    norm.raw_data = bytes(len(norm.raw_data))
    (out / "model.onnx").write_bytes(graph.SerializeToString())
    (out / MANIFEST).unlink()
    write_manifest(out)
    with pytest.raises(MmcliError, match=r"the error grows most in layer 1 \(attention\)") as caught:
        check_export(out)
    assert caught.value.exit_code == 1 and "left as it is" in caught.value.fix
    assert (out / "model.onnx").is_file()
