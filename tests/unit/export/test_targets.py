"""What a target adds to a folder; operators of the standard; text of one's own for int4."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mmcli.errors import MmcliError, UserError
from mmcli.export import mobile
from mmcli.export.calibrate import calibration_texts
from mmcli.export.check import check_export
from mmcli.export.engine import open_onnx_engine
from mmcli.export.locate import Dtype, default_folder
from mmcli.export.onnx_export import export_onnx
from mmcli.generate.onnx_growing import GrowingOnnxEngine, load_onnx_engine
from mmcli.model.formats.hf_config import read_model_config
from mmcli.run import ModelRef
from mmcli.text.tokenizer import Tokenizer

Save = Callable[..., Path]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_a_phone_gets_an_ort_file_and_what_a_build_needs(dtype: Dtype, save: Save, tmp_path: Path) -> None:
    handlers = list(logging.root.handlers)
    out = export_onnx(save(), tmp_path / "out", dtype=dtype, target="mobile", force=True).folder
    assert logging.root.handlers == handlers
    assert {"model.onnx", "model.ort", "required_operators.config", "mobile_usability.txt"} < names(out)
    prompt = [5, 6, 7, 8]
    by_onnx, by_ort = (load_onnx_engine(out, graph=out / name) for name in ("model.onnx", "model.ort"))
    np.testing.assert_allclose(by_ort.prefill(0, prompt), by_onnx.prefill(0, prompt), rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_ort.decode([0], [9]), by_onnx.decode([0], [9]), rtol=0, atol=1e-5)
    operators = (out / "required_operators.config").read_text()
    contrib = next(line for line in operators.splitlines() if line.startswith("com.microsoft;1;"))
    assert "GroupQueryAttention" in contrib and ("MatMulNBits" in contrib) == (dtype == "int4")
    assert str(tmp_path) not in operators + (out / "mobile_usability.txt").read_text()
    assert "CoreML" in (out / "mobile_usability.txt").read_text()
    assert json.loads((out / "export.json").read_text())["target"] == "mobile"
    assert check_export(out).proof is not None


def test_an_ort_file_that_differs_is_refused(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = export_onnx(save("other", seed=2), tmp_path / "other_out").folder
    convert = mobile._convert
    monkeypatch.setattr(mobile, "_convert", lambda graph, out: convert(other / "model.onnx", out))
    with pytest.raises(MmcliError, match=r"model\.ort does not compute"):
        export_onnx(save(), tmp_path / "out", target="mobile")
    assert not (tmp_path / "out").exists()


def test_halves_are_refused_for_phones(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would hold the weights in fp32"):
        export_onnx(save(), tmp_path / "out", dtype="fp16", target="mobile")


@pytest.mark.parametrize(
    ("dtype", "graph", "name"), [("fp32", "model.onnx", "fp32"), ("fp16", "model_fp16.onnx", "fp16")]
)
def test_the_web_finds_its_graph(dtype: Dtype, graph: str, name: str, save: Save, tmp_path: Path) -> None:
    source = save()
    out = export_onnx(source, tmp_path / "out", dtype=dtype, target="web").folder
    companions = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names(out) == companions | {f"onnx/{graph}", "export.json", "manifest.json"}
    assert json.loads((out / "config.json").read_text())["transformers.js_config"] == {"dtype": name}
    assert read_model_config(out) == read_model_config(source)
    assert check_export(out).proof is not None


def test_genai_is_needed_for_its_target(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(UserError, match="which is not installed") as refused:
        export_onnx(source, tmp_path / "out", target="genai")
    assert "mmcli[genai]" in refused.value.fix and not (tmp_path / "out").exists()


def test_standard_operators_go_through_the_gate_and_chat(save: Save, tmp_path: Path) -> None:
    made = export_onnx(save(), tmp_path / "out", ops="standard")
    assert max(made.proof.logits.values()) < 1e-4 and made.proof.greedy_equal == made.proof.greedy_tokens
    genai = json.loads((made.folder / "genai_config.json").read_text())
    assert genai["search"]["past_present_share_buffer"] is False
    ref, context = ModelRef(made.folder, None), read_model_config(made.folder).max_seq_len
    assert isinstance(open_onnx_engine(ref, slots=2), GrowingOnnxEngine)
    with pytest.raises(UserError, match=f"max_len = {context + 1} does not fit the exported context"):
        open_onnx_engine(ref, max_len=context + 1)
    assert check_export(made.folder).proof == made.proof


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_standard_operators_hold_integers(dtype: Dtype, save: Save, tmp_path: Path) -> None:
    """A `DequantizeLinear` before each product; ONNX Runtime makes its own operator of the two again."""
    source = save(init_std=0.05)
    made = export_onnx(source, tmp_path / "standard", dtype=dtype, ops="standard", target="mobile")
    graph = onnx.load(made.folder / "model.onnx")
    onnx.checker.check_model(graph)
    assert {each.domain for each in graph.graph.node} == {""}
    standard = load_onnx_engine(made.folder, profile=tmp_path / "profile")
    fused = load_onnx_engine(export_onnx(source, tmp_path / "fused", dtype=dtype).folder)
    for engine in (standard, fused):
        engine.prefill(0, [5, 6, 7, 8])
    found, expected = (engine.decode([0], [9])[0] for engine in (standard, fused))
    # The head, tied to the embedding, is not fused: it takes the hidden state as it is, the other in 8 bits.
    assert np.abs(found - expected).max() <= 0.03 * expected.std()
    events = json.loads(standard.end_profile().read_text())
    ran = [each["args"]["op_name"] for each in events if each.get("cat") == "Node" and "kernel" in each["name"]]
    assert "MatMulNBits" in ran and ran.count("MatMul") == 2  # the head, in two passes


def test_each_has_a_place_of_its_own(tmp_path: Path) -> None:
    ref = ModelRef(tmp_path, None)
    places: list[Any] = [("fp32",), ("int4", "mobile"), ("fp32", "cpu", "standard"), ("fp16", "web", "standard")]
    assert [default_folder(ref, *place).name for place in places] == [
        *("onnx-fp32", "onnx-int4-mobile", "onnx-fp32-standard", "onnx-fp16-web-standard"),
    ]


def test_int4_is_fitted_to_text_of_ones_own(save: Save, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = save(init_std=0.05)
    text = tmp_path / "mine.txt"
    text.write_text("The rain falls.\n\n" + "今天天气很好。\n\n" * 40, encoding="utf-8")
    pieces = calibration_texts(tokenizer, text, 96)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert tokenizer.decode(pieces[0][len(bos) :]).startswith("The rain falls.")
    assert sum(map(len, pieces)) > 200
    mine = export_onnx(source, tmp_path / "out", dtype="int4", calibrate=text).folder
    default = export_onnx(source, tmp_path / "other", dtype="int4").folder
    assert (mine / "model.onnx").read_bytes() != (default / "model.onnx").read_bytes()


def test_text_that_fits_nothing_is_refused(save: Save, tmp_path: Path) -> None:
    source, text = save(), tmp_path / "mine.txt"
    text.write_text("A cloud.", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.txt has less than 32 tokens"):
        export_onnx(source, tmp_path / "out", dtype="int4", calibrate=text)
    with pytest.raises(UserError, match="--calibrate with --dtype int8"):
        export_onnx(source, tmp_path / "out", dtype="int8", calibrate=text)
    with pytest.raises(UserError):
        export_onnx(source, tmp_path / "out", dtype="int4", calibrate=tmp_path / "none.txt")
