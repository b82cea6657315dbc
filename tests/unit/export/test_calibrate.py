"""What 4 bits are fitted to: the powers of the inputs, and the matrices that stay in 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mmcli.export import calibrate
from mmcli.export.calibrate import PLANS, _input_powers, calibration_texts, fit
from mmcli.export.decoder import build_model
from mmcli.export.matrices import FORMATS, NBits
from mmcli.export.onnx_export import export_onnx
from mmcli.model.attention import AttnContext
from mmcli.model.formats.hf_folder import load_model
from mmcli.text.tokenizer import Tokenizer

Save = Callable[..., Path]
INT4 = FORMATS["int4"]


def test_powers_are_mean_squares_of_what_torch_multiplies(save: Save) -> None:
    model, seen = load_model(save()), []
    module: Any = model.model.layers[1].mlp.down_proj
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids = list(range(20))
    powers = _input_powers(model, [ids])
    seen.clear()
    positions = np.arange(20)[None]
    with torch.no_grad():
        model(torch.tensor([ids]), AttnContext.from_batch(positions, np.zeros_like(positions), torch.device("cpu")))
    expected = (seen[0][0] ** 2).mean(dim=0)
    np.testing.assert_allclose(powers["layers.1.mlp.down_proj"], expected / expected.mean(), rtol=1e-4)


def test_experts_have_powers_too(save: Save) -> None:
    powers = _input_powers(load_model(save(use_moe=True)), [list(range(20))])
    assert powers["layers.0.mlp.experts.3.down_proj"].shape == (96,)


def bits(graph: onnx.ModelProto) -> dict[str, int]:
    return {
        node.name: next(each.i for each in node.attribute if each.name == "bits")
        for node in graph.graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_as_few_matrices_as_will_do_stay_in_eight_bits(
    plan: int, save: Save, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(INT4, NBits)
    model, tried = load_model(save(n_layers=3)), []

    def rise(graph: onnx.ModelProto, *_: Any) -> Any:
        tried.append(bits(graph))
        return dataclasses.make_dataclass("Found", ["rise"])(0.03 if len(tried) > plan else 0.045)

    monkeypatch.setattr(calibrate, "chunk_perplexity", rise)
    fitted = fit(INT4, model, calibration_texts(tokenizer, None, model.config.max_seq_len))
    assert len(tried) == plan + 1 and bits(build_model(model, fitted)) == tried[-1]
    eight = [name for name, count in tried[-1].items() if count == 8]
    assert len(eight) == 1 + (0, 2 * 5, 2 * 5 + 2, 2 * 5 + 3)[plan]


def test_a_format_keeps_nothing_of_the_model_before(save: Save, tmp_path: Path) -> None:
    one, two = save(), save("other", seed=2)
    before = export_onnx(two, tmp_path / "out", dtype="int4", force=True).folder / "model.onnx"
    graph = before.read_bytes()
    export_onnx(one, tmp_path / "out", dtype="int4", force=True)
    again = export_onnx(two, tmp_path / "out", dtype="int4", force=True).folder / "model.onnx"
    assert again.read_bytes() == graph
