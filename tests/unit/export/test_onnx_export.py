"""The gate: what is kept is proven, what differs is removed, and the first layer that differs is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mmcli.errors import MmcliError, UserError
from mmcli.export.attention import Attention
from mmcli.export.check import check_export
from mmcli.export.graph import Graph
from mmcli.export.locate import Dtype
from mmcli.export.matrices import FORMATS
from mmcli.export.onnx_export import export_onnx
from mmcli.export.rerun import Rerun
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.manifest import damage
from mmcli.model.formats.hf_config import read_model_config
from mmcli.text.tokenizer import Tokenizer

Save = Callable[..., Path]
MOE = {"use_moe": True, "n_routed_experts": 3, "n_shared_experts": 1}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if "out" in path.name)


def test_a_proven_export_is_complete(save: Save, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, out = save(), tmp_path / "out"
    made = export_onnx(source, out, stage="sft")
    names = {"model.onnx", "config.json", "generation_config.json", "genai_config.json", "export.json"}
    assert {path.name for path in out.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json", "manifest.json"}
    assert damage(out) is None
    assert read_model_config(out) == read_model_config(source)
    assert json.loads((out / "config.json").read_text())["mmcli_stage"] == "sft"
    exported = Tokenizer.load(out)
    assert exported.fingerprint == tokenizer.fingerprint
    proof = made.proof
    assert set(proof.logits) == {"prefill", "decode", "chunks"}
    assert max(proof.logits.values()) <= 1e-4
    assert proof.greedy_equal + proof.greedy_ties == proof.greedy_tokens >= 3 * 48
    assert proof.batch_error <= 1e-5 and proof.forced is None
    for way, tokens in (("chunks", 2 * 96), ("tokens", 300)):
        assert proof.perplexity[way].onnx == pytest.approx(proof.perplexity[way].torch, rel=1e-5)
        assert proof.perplexity[way].tokens >= tokens
    assert proof.round_trips == 9
    assert made.bytes == (out / "model.onnx").stat().st_size
    assert json.loads((out / "export.json").read_text())["proof"]["greedy_equal"] == proof.greedy_equal


@pytest.mark.parametrize(("dtype", "smaller", "error"), [("fp16", 1.9, 0.01), ("int8", 3, 0.05), ("int4", 4, 0.4)])
def test_what_a_format_costs_is_told(dtype: Dtype, smaller: float, error: float, save: Save, tmp_path: Path) -> None:
    source = save(init_std=0.05, dim=128, vocab_size=2000)
    exact = export_onnx(source, tmp_path / "out", dtype="fp32")
    small = export_onnx(source, tmp_path / "out_small", dtype=dtype)
    assert small.bytes < exact.bytes / smaller
    assert 0 < small.proof.logits_error < error
    for way, each in small.proof.perplexity.items():
        assert each.torch == exact.proof.perplexity[way].torch != each.onnx
        assert abs(each.rise) < 0.05
    assert small.proof.greedy_equal / small.proof.greedy_tokens > 0.5


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize(
    "config",
    [
        {"dim": 40, "n_heads": 5, "n_kv_heads": 1, "hidden_dim": 72},
        {"dim": 176, "n_heads": 11, "n_kv_heads": 11, "qk_norm": True, "n_layers": 1},
        {**MOE, "hidden_dim": 40, "n_layers": 1},
        {"bias": True, "head_bias": True, "tie_embeddings": False, "norm": "layernorm", "mlp": "gelu"},
    ],
    ids=["dim 40", "dim 176, qk-norm", "moe", "biases"],
)
def test_every_format_takes_every_shape(dtype: Dtype, config: dict[str, Any], save: Save, tmp_path: Path) -> None:
    proof = export_onnx(save(init_std=0.05, **config), tmp_path / "out", dtype=dtype).proof
    assert proof.logits_error < {"fp32": 1e-5, "fp16": 0.005, "int8": 0.05, "int4": 0.3}[dtype]


def test_fp16_refuses_what_it_cannot_hold(save: Save, tmp_path: Path) -> None:
    source = save()
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 7e4
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight has values up to 70000"):
        export_onnx(source, tmp_path / "out", dtype="fp16")
    assert left(tmp_path / "out") == []


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No format may cost anything."""
    limits = dataclasses.replace(FORMATS["int8"].limits, perplexity=-0.5)
    monkeypatch.setattr(FORMATS["int8"], "limits", limits)


@pytest.mark.usefixtures("costly")
def test_a_rise_of_perplexity_is_refused_or_forced(save: Save, tmp_path: Path) -> None:
    source = save(init_std=0.05)
    with pytest.raises(MmcliError, match=r"perplexity read in chunks rises by .* \(limit -50.0%\)") as refused:
        export_onnx(source, tmp_path / "out", dtype="int8")
    assert refused.value.exit_code == 1 and "--force" in refused.value.fix
    assert left(tmp_path / "out") == []
    made = export_onnx(source, tmp_path / "out", dtype="int8", force=True)
    assert made.proof.forced is not None and made.proof.forced.startswith("perplexity read in chunks")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["proof"]["forced"] == made.proof.forced
    assert check_export(tmp_path / "out").proof == made.proof


def test_a_wrong_graph_cannot_be_forced(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save()
    spoil(monkeypatch, "norm.weight")
    with pytest.raises(MmcliError, match="logits differ"):
        export_onnx(source, tmp_path / "out", force=True)


def test_slots_that_disturb_each_other_are_found(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = OnnxEngine.decode

    def mixed(self: OnnxEngine, slots: Any, ids: Any) -> np.ndarray:
        return decode(self, slots, ids) + np.float32(0.5 * (len(slots) > 1))

    monkeypatch.setattr(OnnxEngine, "decode", mixed)
    with pytest.raises(MmcliError, match=r"decoded in a batch and alone differ by 0\.5"):
        export_onnx(save(), tmp_path / "out", dtype="int8")


def test_a_fault_in_chunks_alone_is_found(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of many tokens is misread and a reply is not, as with one scale for all activations of a call."""
    run = Rerun.run

    def wrong(self: Rerun, pieces: Any) -> Any:
        for found in run(self, pieces):
            if len(found["logits"]) > 1:
                found["logits"] = found["logits"] * 8
            yield found

    monkeypatch.setattr(Rerun, "run", wrong)
    with pytest.raises(MmcliError, match="perplexity read in chunks rises"):
        export_onnx(save(), tmp_path / "out", dtype="int8")


def test_a_shorter_context_is_that_of_the_whole_folder(save: Save, tmp_path: Path) -> None:
    source = save(rope_scaling="yarn", rope_factor=4.0)
    whole = export_onnx(source, tmp_path / "out")
    short = export_onnx(source, tmp_path / "out_short", context=40)
    assert max(short.proof.prompts) + 20 == 40
    found = read_model_config(short.folder)
    assert (found.max_seq_len, found.original_seq_len) == (40, read_model_config(source).original_seq_len)
    assert json.loads((short.folder / "genai_config.json").read_text())["model"]["context_length"] == 40
    engine = OnnxEngine.load(short.folder)
    assert engine.max_len == 40
    assert (engine.prefill(0, [5, 6, 7]) == OnnxEngine.load(whole.folder).prefill(0, [5, 6, 7])).all()
    for context in (0, 97):
        with pytest.raises(UserError, match=rf"context = {context}; the model was made for 96 tokens"):
            export_onnx(source, tmp_path / "out", context=context)


def test_genai_config_says_what_the_graph_is(save: Save, tmp_path: Path, tokenizer: Tokenizer) -> None:
    export_onnx(save(), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    model = document["model"]
    assert (model["vocab_size"], model["context_length"]) == (416, 96)
    assert tokenizer.eos_id in model["eos_token_id"]
    assert model["decoder"]["num_key_value_heads"] == 2 and model["decoder"]["head_size"] == 16
    assert document["search"]["past_present_share_buffer"] is True


def spoil(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One stored weight is not the model's."""
    store = Graph.weight

    def wrong(self: Graph, which: str, values: np.ndarray) -> str:
        if which == name and values.dtype == np.uint8:
            values = values[::-1].copy()
        elif which == name:
            values = values * np.float32(1.01)
        return store(self, which, values)

    monkeypatch.setattr(Graph, "weight", wrong)


@pytest.mark.parametrize(
    ("name", "place", "config"),
    [
        ("embed_tokens.weight", "the embedding", {"tie_embeddings": False}),
        ("layers.1.self_attn.qkv_proj.weight", r"layer 1 \(attention\)", {}),
        ("layers.1.mlp.up_proj.weight", r"layer 1 \(feed-forward\)", {}),
        ("layers.0.mlp.experts.2.down_proj.weight", r"layer 0 \(experts\)", MOE),
        ("layers.1.mlp.gate.weight", r"layer 1 \(experts\)", MOE),
        ("norm.weight", "the final norm", {}),
        ("lm_head.weight", "the output head", {"tie_embeddings": False}),
        ("layers.0.mlp.up_proj.bias", "layer 0 ", {"parallel_block": True, "mlp": "gelu", "bias": True}),
    ],
)
def test_a_wrong_weight_is_found(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str, config: dict[str, Any]
) -> None:
    source = save(**config)
    spoil(monkeypatch, name)
    with pytest.raises(MmcliError, match=f"logits differ by .* the first to differ is {place}") as refused:
        export_onnx(source, tmp_path / "out")
    assert refused.value.exit_code == 1
    assert left(tmp_path / "out") == []


def test_a_wrong_operator_is_found(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Graph.ops

    def wrong(self: Graph, kind: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
        if kind == "GroupQueryAttention" and attributes["name"].startswith("layers.1."):
            attributes["rotary_interleaved"] = 1
        return add(self, kind, inputs, outputs, **attributes)

    monkeypatch.setattr(Graph, "ops", wrong)
    with pytest.raises(MmcliError, match=r"the first to differ is layer 1 \(attention\)"):
        export_onnx(save(), tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_a_window_that_is_left_out_is_found(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Attention.layer

    def wrong(self: Attention, x_BTD: str, layer: int) -> str:
        self.config = read_model_config(other)
        return make(self, x_BTD, layer)

    source, other = save(sliding_window=8), save("other")
    assert export_onnx(source, tmp_path / "out1").proof.logits["prefill"] <= 1e-4
    monkeypatch.setattr(Attention, "layer", wrong)
    with pytest.raises(MmcliError, match=r"the first to differ is layer 0 \(attention\)"):
        export_onnx(source, tmp_path / "out")


@pytest.mark.parametrize(("spread", "limit"), [(0.5, 1e-4), (4.0, 4e-4)])
def test_the_limit_of_a_logit_grows_with_their_spread(
    spread: float, limit: float, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rounding does."""
    source, prefill, error = save(), OnnxEngine.prefill, [0.0]
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] *= spread / export_onnx(source, tmp_path / "out").proof.logits_spread
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})

    def off(self: OnnxEngine, slot: int, ids: Any) -> np.ndarray:
        return prefill(self, slot, ids) + np.float32(error[0])

    monkeypatch.setattr(OnnxEngine, "prefill", off)
    error[0] = 0.8 * limit
    proof = export_onnx(source, tmp_path / "out").proof
    assert proof.logits_spread == pytest.approx(spread, rel=0.01)
    assert 0.7 * limit < max(proof.logits.values()) < 0.9 * limit
    error[0] = 1.5 * limit
    with pytest.raises(MmcliError, match=rf"in prefill \(limit {limit:g}\)"):
        export_onnx(source, tmp_path / "out")


def test_a_fault_of_the_cache_alone_is_found(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = OnnxEngine.decode

    def forgetful(self: OnnxEngine, slots: Any, ids: Any) -> np.ndarray:
        for slot in slots:
            self.truncate(slot, max(0, self.length(slot) - 1))
        return decode(self, slots, ids)

    monkeypatch.setattr(OnnxEngine, "decode", forgetful)
    with pytest.raises(MmcliError, match=r"in decode .*the fault is in how the cache is kept"):
        export_onnx(save(), tmp_path / "out")


def test_int8_that_is_wrong_is_refused(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save()
    spoil(monkeypatch, "layers.1.mlp.down_proj.weight")
    with pytest.raises(MmcliError, match=r"the error grows most in layer 1 \(feed-forward\)"):
        export_onnx(source, tmp_path / "out", dtype="int8")
    assert left(tmp_path / "out") == []


def test_another_tokenizer_is_refused(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Tokenizer.save

    def wrong(self: Tokenizer, folder: Path) -> None:
        write(self, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] += "!"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    source = save()
    monkeypatch.setattr(Tokenizer, "save", wrong)
    with pytest.raises(MmcliError, match="another chat template"):
        export_onnx(source, tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_an_export_replaces_only_an_export(save: Save, tmp_path: Path) -> None:
    source, out = save(), tmp_path / "out"
    out.mkdir()
    export_onnx(source, out)
    before = (out / "model.onnx").read_bytes()
    export_onnx(save("other", seed=2), out)
    assert (out / "model.onnx").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("do not lose me")
    with pytest.raises(UserError, match="exists and is not an export"):
        export_onnx(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "do not lose me"


def test_a_failed_export_leaves_an_earlier_one(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = save(), tmp_path / "out"
    export_onnx(source, out)
    spoil(monkeypatch, "norm.weight")
    with pytest.raises(MmcliError):
        export_onnx(source, out)
    assert damage(out) is None and left(out) == ["out"]


def test_a_tokenizer_larger_than_the_model_is_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its tokenizer has 400 tokens, its model 300"):
        export_onnx(save(vocab_size=300), tmp_path / "out")
