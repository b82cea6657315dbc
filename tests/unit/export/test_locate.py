"""Where exports lie, which one is used, and when it is made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mmcli.cli import chat
from mmcli.errors import MmcliError, UserError
from mmcli.evaluation.engines import choose_backend, load_engine
from mmcli.export.locate import default_folder, find_export
from mmcli.export.onnx_export import export_onnx
from mmcli.find import find_model
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.run import ModelRef, Run
from mmcli.stage import Silent

Save = Callable[..., Path]


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def ref(save: Save, tmp_path: Path) -> ModelRef:
    run = Run.create(tmp_path / "runs", "sft", "x")
    shutil.move(save(), run.model)
    return find_model("1", tmp_path / "runs")


def test_a_run_keeps_its_exports_beside_the_model(ref: ModelRef, tmp_path: Path) -> None:
    assert default_folder(ref, "int8") == tmp_path / "runs" / "0001-sft-x" / "export" / "onnx-int8"
    assert default_folder(ModelRef(tmp_path, None), "fp32") == tmp_path / "onnx-fp32"


def test_the_export_is_made_when_it_is_missing_or_old(ref: ModelRef, save: Save) -> None:
    assert find_export(ref) is None
    notes = Notes()
    engine = load_engine(ref, "onnx", slots=2, max_len=50, report=notes)
    assert isinstance(engine, OnnxEngine)
    assert (engine.slots, engine.max_len) == (2, 50)
    assert "has no ONNX export of these weights yet: making it in" in notes.texts[0]
    folder = find_export(ref)
    assert folder == default_folder(ref, "fp32")
    notes = Notes()
    before = load_engine(ref, "onnx", report=notes).prefill(0, [1, 2, 3])
    assert notes.texts == []
    shutil.copy(save("other", seed=2) / "model.safetensors", ref.path)
    assert find_export(ref) is None
    after = load_engine(ref, "onnx").prefill(0, [1, 2, 3])
    assert abs(before - after).max() > 1e-3
    assert abs(load_engine(ref, "torch").prefill(0, [1, 2, 3]) - after).max() <= 1e-4


def test_a_folder_that_is_an_export_is_taken_as_it_is(save: Save, tmp_path: Path) -> None:
    export_onnx(save(), tmp_path / "out", dtype="int8")
    ref = find_model(str(tmp_path / "out"), tmp_path / "runs")
    assert find_export(ref) == tmp_path / "out"
    assert isinstance(load_engine(ref, "onnx", threads=1), OnnxEngine)


def test_torch_is_the_other_backend(ref: ModelRef) -> None:
    assert isinstance(load_engine(ref, device="cpu"), TorchEngine)
    with pytest.raises(UserError, match="which runs on the CPU"):
        load_engine(ref, "onnx", device="cuda")


def test_damage_of_external_data_is_named(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcli.export.onnx_folder.ONE_FILE_BYTES", 0)
    out = export_onnx(save(), tmp_path / "out").folder
    data = bytearray((out / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "model.onnx.data").write_bytes(data)
    with pytest.raises(UserError) as caught:
        OnnxEngine.load(out)
    assert caught.value.what.startswith(f"{out / 'model.onnx.data'} is damaged: bytes 0 to ")


def test_external_data_outside_of_the_folder_is_refused(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcli.export.onnx_folder.ONE_FILE_BYTES", 0)
    out = export_onnx(save(), tmp_path / "out").folder
    graph = onnx.load(out / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    (out / "manifest.json").unlink()  # as in a folder from elsewhere
    (out / "model.onnx").write_bytes(graph.SerializeToString())
    (out / "model.onnx.data").rename(tmp_path / "model.onnx.data")
    with pytest.raises(MmcliError, match="does not take"):
        OnnxEngine.load(out)


def test_the_newest_export_of_the_weights_is_taken(ref: ModelRef) -> None:
    export_onnx(ref.path, default_folder(ref, "int8"), dtype="int8")
    assert find_export(ref) == default_folder(ref, "int8") and find_export(ref, "fp32") is None
    notes = Notes()
    load_engine(ref, "onnx", report=notes)
    assert len(notes.texts) == 1 and notes.texts[0].endswith("onnx-int8")
    assert not default_folder(ref, "fp32").exists()


def test_an_export_alone_is_a_model(ref: ModelRef, tmp_path: Path) -> None:
    export_onnx(ref.path, default_folder(ref, "int8"), dtype="int8", stage="sft")
    found = find_model(str(default_folder(ref, "int8")), tmp_path / "elsewhere")
    assert choose_backend(found, "torch") == "onnx" and choose_backend(ref, "torch") == "torch"
    assert isinstance(load_engine(found), OnnxEngine)
    done = CliRunner().invoke(chat.app, [str(found.path), "--prompt", "Hello", "--max-new-tokens", "3", "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert json.loads(done.stdout)["backend"] == "onnx"


def test_flat_logits_are_exported(save: Save, tmp_path: Path) -> None:
    folder = save()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: each * 0 for name, each in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    assert export_onnx(folder, tmp_path / "out").proof.logits_error == 0.0
