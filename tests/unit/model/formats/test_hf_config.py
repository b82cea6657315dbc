"""config.json: written for others to read, read back without loss, and read from what others wrote."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli.params import resolve_model
from mmcli.config import preset_names
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import hf_family
from mmcli.model.formats.hf_config import read_model_config, to_hf_config

GPT2: dict[str, Any] = dict(norm="layernorm", position="learned", mlp="gelu_tanh", bias=True, n_kv_heads=8)
PHI: dict[str, Any] = dict(
    norm="layernorm", rotary_fraction=0.5, mlp="gelu_tanh", bias=True, head_bias=True, parallel_block=True
)
YARN: dict[str, Any] = dict(rope_scaling="yarn", rope_factor=4.0)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (family, fields)
    "default": ("llama", {}),
    "biases, untied": ("llama", dict(bias=True, tie_embeddings=False)),
    "own head_dim": ("llama", dict(head_dim=32)),
    "yarn": ("llama", YARN),
    "yarn from a given length": ("llama", dict(**YARN, rope_original_seq_len=1024)),
    "llama 3": ("llama", dict(rope_scaling="llama3", rope_factor=8.0, rope_original_seq_len=2048)),
    "linear": ("llama", dict(rope_scaling="linear", rope_factor=2.0)),
    "sliding window": ("mistral", dict(sliding_window=128)),
    "heads that do not divide the width": ("mistral", dict(dim=500, head_dim=64)),
    "qk-norm": ("qwen3", dict(qk_norm=True)),
    "qk-norm, sliding window": ("qwen3", dict(qk_norm=True, sliding_window=64)),
    "qk-norm, experts": ("qwen3_moe", dict(qk_norm=True, use_moe=True, n_shared_experts=0, norm_topk_prob=False)),
    "experts": ("mixtral", dict(use_moe=True, n_shared_experts=0)),
    "experts, sliding window": ("mixtral", dict(use_moe=True, n_shared_experts=0, sliding_window=64)),
    "shared expert": ("minimind", dict(use_moe=True)),
    "two shared experts, sigmoid": ("minimind", dict(use_moe=True, n_shared_experts=2, scoring_func="sigmoid")),
    "experts, weights as scored": ("minimind", dict(use_moe=True, n_shared_experts=0, norm_topk_prob=False)),
    "gpt2": ("gpt2", GPT2),
    "gpt2, exact gelu, untied": ("gpt2", {**GPT2, "mlp": "gelu", "tie_embeddings": False}),
    "phi": ("phi", PHI),
    "qk-norm, shared expert": ("mmcli", dict(use_moe=True, qk_norm=True)),
    "one of the experts, renormalised, shared": ("granitemoeshared", dict(use_moe=True, num_experts_per_tok=1)),
    "shared expert, yarn": ("granitemoeshared", dict(use_moe=True, **YARN)),
    "layernorm with rotary": ("mmcli", dict(norm="layernorm")),
    "partial rotary": ("mmcli", dict(rotary_fraction=0.5)),
    "gpt2 with grouped queries": ("mmcli", {**GPT2, "n_kv_heads": 2}),
    "qk-norm and biases": ("mmcli", dict(qk_norm=True, bias=True)),
}


def variants() -> dict[str, tuple[str, ModelConfig]]:
    return {name: (family, ModelConfig(**fields)) for name, (family, fields) in VARIANTS.items()}


def presets() -> dict[str, ModelConfig]:
    return {name: resolve_model(name).config.model for name in preset_names()}


def document(config: ModelConfig) -> dict[str, Any]:
    return to_hf_config(config, bos_id=1, eos_id=2, pad_id=0)


def write(folder: Path, fields: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_the_family_of_a_shape(name: str) -> None:
    family, config = variants()[name]
    assert hf_family(config) == family == document(config)["model_type"]


def test_the_families_of_the_presets() -> None:
    assert {name: hf_family(config) for name, config in presets().items()} == {
        **dict.fromkeys(("small", "base", "base-1024", "tiny", "llama-7b", "smollm2-135m"), "llama"),
        **dict.fromkeys(("moe", "moe-1024"), "minimind"),
        "minimind3": "qwen3",
        "minimind3-moe": "qwen3_moe",
        "gpt2": "gpt2",
        "phi-1.5": "phi",
    }


@pytest.mark.parametrize("config", [*(c for _, c in variants().values()), *presets().values()], ids=str)
def test_reading_back_loses_nothing(config: ModelConfig, tmp_path: Path) -> None:
    unusual = dataclasses.replace(config, flash_attn=False, dropout=0.1, seq_aux=False, multiple_of=32)
    for each in (config, unusual):
        assert read_model_config(write(tmp_path, document(each))) == each


def same_function(config: ModelConfig) -> dict[str, Any]:
    """What a config computes, however it says so."""
    values = dataclasses.asdict(config)
    values |= {"hidden_dim": config.ffn_dim, "head_dim": config.d_head, "n_shared_experts": config.n_shared}
    for not_the_function in ("multiple_of", "flash_attn", "dropout", "seq_aux"):
        del values[not_the_function]
    if not config.use_moe:
        for name in ("num_experts_per_tok", "n_routed_experts", "scoring_func", "aux_loss_alpha", "norm_topk_prob"):
            del values[name]
    if config.position == "learned":
        del values["rope_theta"]
    return values


@pytest.mark.parametrize(
    "config", [c for _, c in [*variants().values(), *((0, c) for c in presets().values())] if hf_family(c) != "mmcli"],
    ids=str,
)  # fmt: skip
def test_the_hugging_face_fields_alone_say_the_same_function(config: ModelConfig, tmp_path: Path) -> None:
    fields = document(config)
    del fields["mmcli"]
    assert same_function(read_model_config(write(tmp_path, fields))) == same_function(config)


@pytest.mark.parametrize(
    "config", [c for _, c in variants().values() if hf_family(c) not in ("mmcli", "minimind")], ids=str
)
def test_transformers_reads_it_and_what_it_saves_reads_back(config: ModelConfig, tmp_path: Path) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(write(tmp_path, document(config)))
    assert theirs.model_type == hf_family(config)
    assert (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers) == (6400, config.dim, config.n_layers)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert str(theirs.dtype) in ("float32", "torch.float32")
    if config.position == "rope":
        rope = theirs.rope_parameters
        assert rope["rope_theta"] == config.rope_theta
        assert rope["rope_type"] == {"none": "default"}.get(config.rope_scaling, config.rope_scaling)
        assert rope.get("factor", 1.0) == config.rope_factor
        assert rope.get("partial_rotary_factor", 1.0) == config.rotary_fraction
    theirs.save_pretrained(tmp_path / "saved")
    assert read_model_config(tmp_path / "saved") == config


def test_older_programs_find_rotary_settings_at_the_top() -> None:
    plain, yarn = document(ModelConfig()), document(ModelConfig(rope_scaling="yarn", rope_factor=4.0))
    assert (plain["rope_theta"], plain["rope_scaling"]) == (1e6, None)
    assert yarn["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


# What others wrote


def test_the_first_release_of_minimind2(tmp_path: Path) -> None:
    fields = {
        "model_type": "minimind", "dim": 640, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 6400,
        "hidden_dim": None, "multiple_of": 64, "norm_eps": 1e-5, "max_seq_len": 8192, "rope_theta": 1e6,
        "dropout": 0.0, "flash_attn": True, "use_moe": True, "num_experts_per_tok": 2, "n_routed_experts": 4,
        "n_shared_experts": True, "scoring_func": "softmax", "aux_loss_alpha": 0.1, "seq_aux": True,
        "norm_topk_prob": True,
    }  # fmt: skip
    assert read_model_config(write(tmp_path, fields)) == ModelConfig(dim=640, use_moe=True)


def test_minimind_3_has_qk_norm_and_no_shared_expert(tmp_path: Path) -> None:
    fields = {
        "model_type": "minimind", "hidden_size": 768, "num_hidden_layers": 8, "use_moe": True, "vocab_size": 6400,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 96, "hidden_act": "silu",
        "intermediate_size": 2432, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True, "inference_rope_scaling": False, "rope_scaling": None, "num_experts": 4,
        "num_experts_per_tok": 1, "moe_intermediate_size": 2432, "norm_topk_prob": True, "router_aux_loss_coef": 5e-4,
    }  # fmt: skip
    found = read_model_config(write(tmp_path, fields))
    released = replace(resolve_model("minimind3-moe").config.model, norm_topk_prob=True)
    assert same_function(found) == same_function(released)  # new models do without


def test_minimind2_does_not_renormalise_a_single_expert(tmp_path: Path) -> None:
    fields = document(ModelConfig(use_moe=True))
    del fields["mmcli"]
    assert read_model_config(write(tmp_path, fields)).norm_topk_prob is True
    assert read_model_config(write(tmp_path, {**fields, "num_experts_per_tok": 1})).norm_topk_prob is False


def llama(**changes: Any) -> dict[str, Any]:
    """A Llama config.json as transformers 4 wrote them."""
    fields = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 256, "hidden_act": "silu",
        "rope_theta": 500000.0,
    }  # fmt: skip
    return {**fields, **changes}


def test_absent_fields_mean_what_they_mean_in_transformers(tmp_path: Path) -> None:
    found = read_model_config(write(tmp_path, llama()))
    assert (found.n_kv_heads, found.norm_eps, found.tie_embeddings, found.rope_theta) == (4, 1e-6, False, 5e5)
    bare = llama()
    del bare["rope_theta"]
    assert read_model_config(write(tmp_path, bare)).rope_theta == 10000.0


def test_dropout_is_read_only_where_it_means_the_same(tmp_path: Path) -> None:
    assert read_model_config(write(tmp_path, llama(attention_dropout=0.1))).dropout == 0.0
    gpt2 = document(ModelConfig(**{**GPT2, "dropout": 0.1}))
    del gpt2["mmcli"]
    assert read_model_config(write(tmp_path, gpt2)).dropout == 0.1
    assert read_model_config(write(tmp_path, {**gpt2, "embd_pdrop": 0.0})).dropout == 0.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (llama(model_type="mamba"), "mamba"),
        (llama(hidden_act="relu"), "hidden_act"),
        (llama(mlp_bias=True), "mlp_bias"),
        (llama(hidden_size="64"), "hidden_size"),
        (llama(rope_scaling={"rope_type": "longrope", "factor": 8.0}), "longrope"),
        (llama(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}), "low_freq_factor"),
        (llama(rope_scaling={"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}), "beta_fast"),
        (llama(rope_scaling={"rope_type": "yarn"}), "factor"),
        (llama(rope_parameters={"rope_theta": 1.0, "rope_type": "default"}), "rope_theta"),
        (llama(rope_parameters={"full_attention": {"rope_theta": 1.0}}), "rope_parameters"),
        (llama(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (llama(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (llama(quantization_config={"quant_method": "gptq"}), "quantization_config"),
        (llama(num_key_value_heads=3), "n_kv_heads"),
        ({name: value for name, value in llama().items() if name != "vocab_size"}, "vocab_size"),
        ({**llama(model_type="qwen3"), "attention_bias": True}, "attention_bias"),
        ({**llama(model_type="qwen3"), "use_sliding_window": True, "max_window_layers": 1}, "max_window_layers"),
        ({**llama(model_type="minimind"), "inference_rope_scaling": True}, "inference_rope_scaling"),
        (llama(model_type="mmcli"), "mmcli"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_named(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_model_config(write(tmp_path, fields))
    assert named in caught.value.what
    assert str(tmp_path) in caught.value.what
    assert caught.value.fix


JUNK: tuple[Any, ...] = ("x", "", [], ["x"], {}, {"x": 1}, {"rope_type": "yarn", "factor": "x"}, -1, 0, 1.5, True, None)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "mixtral", "gpt2", "phi", "minimind"])
def test_whatever_a_field_holds_it_is_read_or_refused(family: str, tmp_path: Path) -> None:
    config = next(config for name, config in variants().values() if name == family)
    fields = document(config)
    del fields["mmcli"]
    extra = {"layer_types": None, "quantization_config": None, "partial_rotary_factor": None, "max_window_layers": 1}
    for name in {**extra, **fields}:
        for junk in JUNK:
            write(tmp_path, {"use_sliding_window": True, **fields, name: junk})
            try:
                assert isinstance(read_model_config(tmp_path), ModelConfig)
            except UserError as error:
                assert error.what and error.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 640), ("tie_word_embeddings", False), ("rope_theta", 10000.0), ("model_type", "mistral"),
     ("rope_parameters", {"rope_theta": 1e6, "rope_type": "yarn"})],
)  # fmt: skip
def test_fields_that_contradict_the_own_key_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    fields = {**document(ModelConfig()), name: value}
    with pytest.raises(UserError, match=name):
        read_model_config(write(tmp_path, fields))


def test_token_ids_and_dtype_may_change(tmp_path: Path) -> None:
    fields = {**document(ModelConfig()), "eos_token_id": 7, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert read_model_config(write(tmp_path, fields)) == ModelConfig()


def test_a_wrong_value_under_the_own_key_is_named(tmp_path: Path) -> None:
    fields = document(ModelConfig())
    with pytest.raises(UserError, match="dim"):
        read_model_config(write(tmp_path, {**fields, "mmcli": {**fields["mmcli"], "dim": "wide"}}))
    with pytest.raises(UserError, match="mmcli"):
        read_model_config(write(tmp_path, {**fields, "mmcli": 3}))


def test_no_file_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        read_model_config(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.json is not"):
            read_model_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_model_config(tmp_path)
