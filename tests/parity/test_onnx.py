"""ONNX Runtime computes what torch computes: every shape of model, in prefill, decode, pieces, several slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mmcli.config import preset_chain
from mmcli.export.decoder import build_model
from mmcli.export.locate import Dtype, Ops
from mmcli.export.matrices import FORMATS
from mmcli.export.onnx_folder import write_graph
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.onnx_growing import GrowingOnnxEngine
from mmcli.generate.onnx_session import open_session
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer

SIZES: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97, "max_seq_len": 64, "hidden_dim": 96,
    "init_std": 0.2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied, head bias": {"tie_embeddings": False, "head_bias": True},
    "biases": {"bias": True},
    "equal heads": {"n_kv_heads": 4},
    "qwen3": {"qk_norm": True},
    "window": {"sliding_window": 5},
    "heads of 8": {"n_heads": 8},
    "heads of 24, qk-norm": {"head_dim": 24, "qk_norm": True},
    "partly rotated": {"rotary_fraction": 0.5},
    "llama 3 rotary": {"rope_scaling": "llama3", "rope_factor": 4.0},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0},
    "linear": {"rope_scaling": "linear", "rope_factor": 2.0},
    "moe": {"use_moe": True},
    "moe, sigmoid, one expert": {
        "use_moe": True, "scoring_func": "sigmoid", "num_experts_per_tok": 1, "n_shared_experts": 0,
    },
    "moe, three of six, not renormalised": {
        "use_moe": True, "n_routed_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False,
        "n_shared_experts": 2,
    },
    "moe, all experts, qk-norm": {"use_moe": True, "num_experts_per_tok": 4, "qk_norm": True},
    "moe, ungated": {"use_moe": True, "mlp": "gelu"},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
    "learned, rmsnorm": {"position": "learned", "mlp": "gelu"},
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False,
    },
}  # fmt: skip


def make(values: dict[str, Any], seed: int = 1) -> Transformer:
    model = Transformer(ModelConfig(**values), seed=seed).eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def engines(model: Transformer, folder: Path, slots: int) -> tuple[TorchEngine, OnnxEngine]:
    write_graph(folder, build_model(model, FORMATS["fp32"]))
    session = open_session(folder / "model.onnx")
    return TorchEngine(model, slots=slots), OnnxEngine(session, model.config, slots=slots)


def standard_engines(model: Transformer, folder: Path, slots: int) -> tuple[TorchEngine, GrowingOnnxEngine]:
    write_graph(folder, build_model(model, FORMATS["fp32"], ops="standard"))
    session = open_session(folder / "model.onnx")
    return TorchEngine(model, slots=slots), GrowingOnnxEngine(session, model.config, slots=slots)


@pytest.mark.parametrize("ops", ["fused", "standard"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal(kind: str, ops: Ops, tmp_path: Path) -> None:
    model = make({**SIZES, **KINDS[kind]})
    by_torch, by_onnx = (engines if ops == "fused" else standard_engines)(model, tmp_path, slots=4)
    random = np.random.default_rng(0)

    def same(call: str, *arguments: Any) -> None:
        expected, found = getattr(by_torch, call)(*arguments), getattr(by_onnx, call)(*arguments)
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

    for slot, length in enumerate((5, 17, 1, 30)):
        same("prefill", slot, random.integers(0, 97, length).tolist())
    for slots in ([0, 1, 2, 3], [3, 0, 2, 1], [0, 3], [2], [1, 2]):
        same("decode", slots, random.integers(0, 97, len(slots)).tolist())
    for piece in (4, 1, 2):
        same("prefill", 1, random.integers(0, 97, piece).tolist())
    same("verify", 2, random.integers(0, 97, 3).tolist())
    for engine in (by_torch, by_onnx):
        engine.truncate(3, 7)
        engine.copy(0, 2)
    same("decode", [2, 3], [5, 6])
    assert [by_onnx.length(slot) for slot in range(4)] == [by_torch.length(slot) for slot in range(4)]


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_an_expert_that_is_not_chosen_is_not_touched(dtype: Dtype, portable: bool, tmp_path: Path) -> None:
    """Its weights may be no numbers: one token goes to two of four experts, and the other two change nothing."""
    model = make({**SIZES, "use_moe": True, "n_layers": 1, "n_shared_experts": 0})
    graph = build_model(model, FORMATS[dtype], portable=portable)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    changed = []
    for expert in (None, 0, 1, 2, 3):
        poisoned = onnx.ModelProto.FromString(graph.SerializeToString())
        for tensor in poisoned.graph.initializer:
            own, all_of_them = f".experts.{expert}." in tensor.name, len(tensor.dims) == 3
            if expert is None or tensor.data_type not in floats or not (own or all_of_them):
                continue
            values = numpy_helper.to_array(tensor).copy()
            values[... if own else expert] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        write_graph(tmp_path, poisoned)
        engine = OnnxEngine(open_session(tmp_path / "model.onnx"), model.config)
        logits_V = engine.prefill(0, [7])
        if expert is None:
            expected_V = logits_V
        changed.append(not np.array_equal(logits_V, expected_V))
    assert sum(changed) == 2


def greedy_or_tied(model: Transformer, folder: Path, prompts: list[list[int]], new_tokens: int = 64) -> int:
    """64 greedy tokens of each prompt, equal or with torch's logits of the two choices within 1e-4: how many tie."""
    by_torch, by_onnx = engines(model, folder, slots=1)
    ties = 0
    for prompt in prompts:
        by_torch.truncate(0, 0)
        by_onnx.truncate(0, 0)
        expected, found = by_torch.prefill(0, prompt), by_onnx.prefill(0, prompt)
        for _ in range(new_tokens):
            token, other = int(expected.argmax()), int(found.argmax())
            if token != other:
                assert expected[token] - expected[other] <= 1e-4
                ties += 1
            expected, found = by_torch.decode([0], [token])[0], by_onnx.decode([0], [token])[0]
    return ties


def preset(name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _, tables in preset_chain(name):
        values |= tables.get("model", {})
    return values


PROMPTS = [[1, 5, 9, 200, 31], list(range(40, 70)), [3]]


def test_tiny_writes_the_same_greedy_tokens(tmp_path: Path) -> None:
    assert greedy_or_tied(Transformer(ModelConfig(**preset("tiny"))), tmp_path, PROMPTS) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "moe", "minimind3-moe"])
def test_large_shapes_write_the_same_greedy_tokens(name: str, tmp_path: Path) -> None:
    assert greedy_or_tied(Transformer(ModelConfig(**preset(name))), tmp_path, PROMPTS) <= 2


def test_the_graph_is_that_of_the_folder(tmp_path: Path) -> None:
    """What the proof runs is what lies on the disk: a changed byte of a weight changes the logits."""
    model = make(SIZES)
    before = engines(model, tmp_path, slots=1)[1].prefill(0, [1, 2, 3])
    graph = onnx.load(tmp_path / "model.onnx")
    weight = next(each for each in graph.graph.initializer if each.name == "layers.0.mlp.up_proj.weight")
    weight.raw_data = (np.frombuffer(weight.raw_data, dtype=np.float32) * np.float32(1.1)).tobytes()
    onnx.save(graph, tmp_path / "model.onnx")
    after = OnnxEngine(open_session(tmp_path / "model.onnx"), model.config).prefill(0, [1, 2, 3])
    assert np.abs(after - before).max() > 1e-3
