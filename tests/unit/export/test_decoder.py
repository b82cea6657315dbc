"""The graph: versions, names, operators, and what it refuses. That it computes the same is a parity test."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from mmcli.errors import UserError
from mmcli.export import onnx_folder
from mmcli.export.decoder import build_model
from mmcli.export.locate import Dtype
from mmcli.export.matrices import FORMATS, NBits
from mmcli.export.onnx_folder import write_graph
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.onnx_session import open_session
from mmcli.generate.torch_engine import TorchEngine
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


@pytest.mark.parametrize("kept", [(), ("layers.0.",)])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_experts_per_tok": 1, "n_shared_experts": 0},
        {"num_experts_per_tok": 3, "norm_topk_prob": False},
        {"scoring_func": "sigmoid"},
        {"scoring_func": "sigmoid", "norm_topk_prob": False, "n_shared_experts": 2},
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_one_operator_computes_what_the_plain_nodes_of_experts_do(
    dtype: Dtype, values: dict[str, Any], kept: tuple[str, ...]
) -> None:
    model = Transformer(ModelConfig(**{**SIZES, "use_moe": True, "init_std": 0.2, **values}), seed=1)
    matrices = FORMATS[dtype]
    assert isinstance(matrices, NBits)
    fitted = matrices.fitted({}, kept, {})
    fused, plain = (build_model(model, fitted, portable=portable) for portable in (False, True))
    assert kinds(fused)["QMoE"] == 2 and kinds(plain)["QMoE"] == 0
    ids = np.arange(11, dtype=np.int64)[None] * 7
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds |= {each.name: np.zeros((1, 2, 0, 16), np.float32) for each in fused.graph.input[2:]}
    found, expected = (open_graph(each).run(["logits"], feeds)[0] for each in (fused, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


def test_experts_that_the_operator_does_not_take_are_plain_nodes() -> None:
    """A width that is no multiple of a block, matrices of different bits."""
    assert kinds(build("int4", use_moe=True))["QMoE"] == 2
    assert kinds(build("int4", use_moe=True, hidden_dim=112))["QMoE"] == 0
    assert kinds(build("int4", use_moe=True, dim=72, n_heads=3, n_kv_heads=3))["QMoE"] == 0
    model, int4 = Transformer(ModelConfig(**{**SIZES, "use_moe": True})), FORMATS["int4"]
    assert isinstance(int4, NBits)
    assert kinds(build_model(model, int4.fitted({}, (".down_proj",), {})))["QMoE"] == 0


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_versions_and_names_are_those_that_other_programs_load() -> None:
    model = build()
    assert model.ir_version == 10
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 21, "com.microsoft": 1}
    past = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert [each.name for each in model.graph.input] == ["input_ids", "attention_mask", *past]
    present = [name.replace("past_key_values", "present") for name in past]
    assert [each.name for each in model.graph.output] == ["logits", *present, "last_logits"]
    # transformers.js fills the one symbol that is named so with the batch, and every other with 0.
    shapes = [each.type.tensor_type.shape.dim for each in (*model.graph.input, *model.graph.output)]
    assert {dims[0].dim_param for dims in shapes} == {"batch_size"}


@pytest.mark.parametrize(
    "values", [{}, {"use_moe": True, "qk_norm": True}, {"norm": "layernorm", "position": "learned"}]
)
@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_a_graph_of_standard_operators_holds_no_others(dtype: Dtype, values: dict[str, Any]) -> None:
    model = build_model(Transformer(ModelConfig(**{**SIZES, **values})), FORMATS[dtype], ops="standard")
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23} and model.ir_version == 11
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)  # the fused ones, it does not know
    assert kinds(model)["Attention"] == 2
    assert [each.name for each in model.graph.input] == [each.name for each in build(dtype, **values).graph.input]


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-4), ("int8", 0.05), ("int4", 0.5)])
def test_standard_operators_run_in_another_runtime(dtype: Dtype, error: float) -> None:
    """ONNX's own reference, in Python and without ONNX Runtime; `error` as a share of the logits' deviation."""
    torch_model = Transformer(ModelConfig(**SIZES, sliding_window=3), seed=1)
    reference = ReferenceEvaluator(build_model(torch_model, FORMATS[dtype], ops="standard"))
    feed = {"input_ids": np.array([[5, 6, 7, 8, 9]]), "attention_mask": np.ones((1, 5), dtype=np.int64)}
    empty = np.zeros((1, 2, 0, 16), dtype=np.float32)
    feed |= {name: empty for name in reference.input_names if name.startswith("past")}
    logits = dict(zip(reference.output_names, reference.run(None, feed), strict=True))["logits"]
    expected_V = TorchEngine(torch_model).prefill(0, [5, 6, 7, 8, 9])
    assert np.sqrt(np.mean((logits[0, 0] - expected_V) ** 2)) <= error * expected_V.std()


def test_a_dense_layer_is_made_of_fused_operators() -> None:
    found = kinds(build())
    assert found["GroupQueryAttention"] == 2
    assert found["MatMul"] == 2 * 5  # qkv in one, o, gate, up, down
    assert found["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert found["Gemm"] == 1 and found["RotaryEmbedding"] == 0
    assert sum(found.values()) < 50


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_lies_in_the_file_once(tied: bool, dtype: Dtype) -> None:
    model = build(dtype, tie_embeddings=tied)
    config = ModelConfig(**SIZES, tie_embeddings=tied)
    total, tables = count_parameters(config).total, (1 if tied else 2) * 200 * 64
    norms = (2 * config.n_layers + 1) * config.dim
    matrices = total - norms
    vectors = 4 * (norms + config.rotary_dim // 2)
    if dtype in ("fp32", "fp16"):
        expected = matrices * (4 if dtype == "fp32" else 2)
    else:  # with scales of 2 bytes a block of 32
        expected = matrices // 32 * 2 + (matrices if dtype == "int8" else tables + (matrices - tables) // 2)
    stored = sum(len(each.raw_data) for each in model.graph.initializer if each.data_type != onnx.TensorProto.INT64)
    assert stored == expected + vectors
    wide = [each for each in model.graph.initializer if math.prod(each.dims) == 200 * 64]
    assert len(wide) == (1 if tied else 2)


def optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime is left with once it has loaded the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return kinds(onnx.load(folder / "optimized.onnx"))


@pytest.mark.parametrize("dtype", ["fp16", "int4"])
def test_what_is_stored_small_is_widened_once(dtype: Dtype, tmp_path: Path) -> None:
    model = build(dtype)
    assert kinds(model)["Cast"] > 10 and kinds(model)["Cos"] == 1
    left = optimized(model, tmp_path)
    assert left["Cast"] == 2 and left["Cos"] == left["Range"] == 0  # of the lengths


def test_the_context_is_the_length_of_the_tables(tmp_path: Path) -> None:
    model = Transformer(ModelConfig(**SIZES, position="learned"))
    graph = build_model(model, FORMATS["fp32"], 9)
    table = next(each for each in graph.graph.initializer if each.name == "embed_positions.weight")
    assert list(table.dims) == [9, 64]
    assert {each.key: each.value for each in graph.metadata_props}["context_length"] == "9"


@pytest.mark.parametrize("values", [{}, {"rope_scaling": "yarn", "rope_factor": 4.0, "max_seq_len": 4096}])
def test_the_rotary_tables_are_those_of_torch(values: dict[str, Any], tmp_path: Path) -> None:
    model = Transformer(ModelConfig(**{**SIZES, "max_seq_len": 8192, **values}))
    assert model.rotary is not None
    graph = build_model(model, FORMATS["fp32"])
    context, scaled = model.config.max_seq_len, "_scaled" if values else ""
    names = [f"rotary.cos{scaled}", f"rotary.sin{scaled}"]
    graph.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"input_ids": np.array([[1]]), "attention_mask": np.ones((1, 1), dtype=np.int64)}
    for each in session.get_inputs():
        if each.name.startswith("past"):
            feed[each.name] = np.zeros((1, 2, 0, 16), dtype=np.float32)
    tables = model.rotary(torch.arange(context)[None])
    for found, expected in zip(session.run(names, feed), tables, strict=True):
        np.testing.assert_allclose(found, expected[0, :, 0, 8:].numpy(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("values", [{"qk_norm": True}, {"head_dim": 24}, {}])
def test_queries_keys_and_values_are_one_product(values: dict[str, Any]) -> None:
    assert kinds(build("int8", **values))["MatMulNBits"] == 2 * 5 + 1


def test_an_expert_adds_no_more_nodes_than_its_own_products() -> None:
    """A node takes as long as a small matrix, whether its expert was chosen or not."""
    four, six = (kinds(build(use_moe=True, n_routed_experts=count, n_layers=1)) for count in (4, 6))
    assert six - four == Counter({"MatMul": 2 * 3, "Sigmoid": 2, "Mul": 2 * 2})


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
