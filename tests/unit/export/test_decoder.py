"""The graph: versions, names, operators, and what it refuses. That it computes the same is a parity test."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from mmcli.errors import UserError
from mmcli.export import onnx_folder
from mmcli.export.decoder import build_model
from mmcli.export.locate import Dtype
from mmcli.export.matrices import FORMATS
from mmcli.export.onnx_folder import write_graph
from mmcli.generate.onnx_engine import OnnxEngine, open_session
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.model.transformer import Transformer

SIZES: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 200, "hidden_dim": 96, "max_seq_len": 32,
}  # fmt: skip


def build(dtype: Dtype = "fp32", **values: Any) -> onnx.ModelProto:
    return build_model(Transformer(ModelConfig(**{**SIZES, **values})), FORMATS[dtype])


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_versions_and_names_are_those_that_other_programs_load() -> None:
    model = build()
    assert model.ir_version == 10
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 21, "com.microsoft": 1}
    past = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert [each.name for each in model.graph.input] == ["input_ids", "attention_mask", *past]
    present = [name.replace("past_key_values", "present") for name in past]
    assert [each.name for each in model.graph.output] == ["logits", *present]
    # transformers.js fills the one symbol that is named so with the batch, and every other with 0.
    shapes = [each.type.tensor_type.shape.dim for each in (*model.graph.input, *model.graph.output)]
    assert {dims[0].dim_param for dims in shapes} == {"batch_size"}


def test_a_dense_layer_is_made_of_fused_operators() -> None:
    found = kinds(build())
    assert found["GroupQueryAttention"] == 2
    assert found["MatMul"] == 2 * 5  # qkv in one, o, gate, up, down
    assert found["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert found["Gemm"] == 1 and found["RotaryEmbedding"] == 0
    assert sum(found.values()) < 50


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_lies_in_the_file_once(tied: bool, dtype: Dtype) -> None:
    model = build(dtype, tie_embeddings=tied)
    stored = [tensor for tensor in model.graph.initializer if math.prod(tensor.dims) == 200 * 64]
    assert len(stored) == (1 if tied else 2)
    config = ModelConfig(**SIZES, tie_embeddings=tied)
    floats = sum(math.prod(each.dims) for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)
    bytes_ = sum(math.prod(each.dims) for each in model.graph.initializer if each.data_type == onnx.TensorProto.UINT8)
    rotary = 2 * config.max_seq_len * config.rotary_dim // 2
    total = count_parameters(config).total
    norms = (2 * config.n_layers + 1) * config.dim
    if dtype == "int8":
        columns = config.n_layers * (64 + 2 * 32 + 64 + 2 * 96 + 64) + (1 if tied else 2) * config.vocab_size
        assert (floats, bytes_) == (norms + rotary + columns, total - norms + columns)
    else:
        assert (floats, bytes_) == (total + rotary, 0)


def test_the_router_stays_fp32_in_int8() -> None:
    model = build("int8", use_moe=True)
    routers = [each for each in model.graph.initializer if each.name.endswith("gate.weight")]
    assert len(routers) == 2
    assert all(each.data_type == onnx.TensorProto.FLOAT for each in routers)


@pytest.mark.parametrize("head_dim", [20, 4])
def test_a_head_that_the_attention_cannot_take_is_refused_by_name(head_dim: int) -> None:
    with pytest.raises(UserError, match=f"model.head_dim = {head_dim} is not a multiple of 8") as refused:
        build(head_dim=head_dim)
    assert "head_dim or n_heads" in refused.value.fix


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(ModelConfig(**SIZES))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_graph(tmp_path / "one", build_model(model, FORMATS["fp32"]))
    monkeypatch.setattr(onnx_folder, "ONE_FILE_BYTES", 1000)
    write_graph(tmp_path / "two", build_model(model, FORMATS["fp32"]))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.onnx"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "two" / "model.onnx").stat().st_size < (tmp_path / "one" / "model.onnx").stat().st_size / 4
    one, two = (
        OnnxEngine(open_session(tmp_path / name / "model.onnx"), model.config).prefill(0, [1, 2, 3])
        for name in ("one", "two")
    )
    assert (one == two).all()
