"""Transformers folders: every family comes back as it was, in every kind of file, and what does not fit is named."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.formats.read import read_model, save_imported
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 400, "max_seq_len": 32, "hidden_dim": 48}
MOE = {"use_moe": True, "n_shared_experts": 0}
GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, untied, derived width": {"tie_embeddings": False, "hidden_dim": None},
    "mistral": {"sliding_window": 4},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": {**MOE, "qk_norm": True},
    "mixtral": MOE,
    "minimind": {"use_moe": True, "n_shared_experts": 2},
    "gpt2": GPT2,
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False,
    },
    "mmcli": {"mlp": "gelu"},
}  # fmt: skip
PICKLED = "pytorch_model.bin"


def saved(folder: Path, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, **values: Any) -> Transformer:
    model = Transformer(ModelConfig(**{**SIZES, **values}), seed=1)
    for name, parameter in model.named_parameters():  # norms and biases too, so that none can be left out unseen
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    model = model.to(dtype)
    save_model(folder, model, model.config, tokenizer)
    return model


def assert_same(model: Transformer, again: Transformer) -> None:
    assert again.config == model.config
    assert list(again.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(again.state_dict()[name], tensor), name


def edit_json(path: Path, **values: Any) -> None:
    document = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_comes_back_the_same(kind: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = saved(tmp_path / "source", tokenizer, dtype, **KINDS[kind])
    found = read_model(tmp_path / "source")
    assert_same(model, found.model)
    save_imported(tmp_path / "mine", found)
    assert_same(model, load_model(tmp_path / "mine", dtype=dtype))
    assert Tokenizer.load(tmp_path / "mine").fingerprint == tokenizer.fingerprint
    document = json.loads((tmp_path / "mine" / "config.json").read_text(encoding="utf-8"))
    assert document["model_type"] == kind.split(",")[0] and document["mmcli"]["dim"] == 32


def shard(folder: Path, save: Callable[[dict[str, Any], Path], None], stem: str, suffix: str) -> None:
    """The weights of a folder in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    where = {name: f"{stem}-{1 + (n % 2):05d}-of-00002{suffix}" for n, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("kind", ["safetensors in shards", "pickled", "pickled in shards"])
def test_every_kind_of_file_is_read(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = saved(tmp_path, tokenizer, use_moe=True)
    if kind == "pickled":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / PICKLED)
        os.remove(tmp_path / "model.safetensors")
    elif kind == "pickled in shards":
        shard(tmp_path, torch.save, "pytorch_model", ".bin")
    else:
        shard(tmp_path, save_file, "model", ".safetensors")
    assert_same(model, read_model(tmp_path).model)


def test_a_missing_shard_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, tokenizer)
    shard(tmp_path, save_file, "model", ".safetensors")
    os.remove(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"has no model-00002-of-00002\.safetensors"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is not an index of weights"):
        read_model(tmp_path)


def test_gpt2_as_published_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Saved without its head: no prefix on the names, and the causal masks as tensors."""
    model = saved(tmp_path, tokenizer, **GPT2)
    tensors = {
        name.removeprefix("transformer."): each for name, each in load_file(tmp_path / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(model, read_model(tmp_path).model)


def test_other_programs_config_is_read_without_our_key(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = saved(tmp_path, tokenizer)
    edit_json(tmp_path / "config.json", mmcli=..., mmcli_stage=...)
    found = read_model(tmp_path)
    assert found.model.config.ffn_dim == 48 and found.model.config.n_kv_heads == 2
    assert torch.equal(found.model.state_dict()["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_types_that_differ_are_read_as_fp32(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = saved(tmp_path, tokenizer, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].float()}, tmp_path / "model.safetensors")
    again = read_model(tmp_path).model
    assert all(each.dtype == torch.float32 for each in again.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float()), name


def test_every_end_of_a_reply_and_the_stage_come_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path / "source", tokenizer)
    edit_json(tmp_path / "source" / "generation_config.json", eos_token_id=[2, 0], temperature=0.6)
    edit_json(tmp_path / "source" / "config.json", mmcli_stage="pretrain")
    save_imported(tmp_path / "mine", read_model(tmp_path / "source"))
    generation = json.loads((tmp_path / "mine" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [2, 0] and generation["temperature"] == 0.6
    assert Tokenizer.load(tmp_path / "mine").definition.more_eos_ids == (2, 0)
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["mmcli_stage"] == "pretrain"


def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    wrong = {
        **{name: each for name, each in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"},
        "model.norm.weight": torch.ones(7),
        "lora.A": torch.ones(2),
    }
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as raised:
        read_model(tmp_path)
    assert "missing: model.layers.1.mlp.up_proj.weight" in raised.value.what
    assert "unexpected: lora.A" in raised.value.what
    assert "of another shape: model.norm.weight [7] instead of [32]" in raised.value.what
    save_file({**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is not fp32, bf16 or fp16"):
        read_model(tmp_path)
    save_file({**tensors, "lm_head.weight": torch.ones(400, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        read_model(tmp_path)


def test_a_quantized_or_unknown_family_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, tokenizer)
    edit_json(tmp_path / "config.json", mmcli=..., model_type="mamba")
    with pytest.raises(UserError, match='model_type = "mamba" is not supported'):
        read_model(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path, tokenizer, vocab_size=350)
    with pytest.raises(UserError, match=r"the tokenizer has 380 tokens, the model of .* 350") as raised:
        read_model(tmp_path)
    assert "--tokenizer" in raised.value.fix


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("name", [PICKLED, "weights.pth"])
def test_no_code_of_a_file_runs(
    name: str, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, tokenizer)
    os.remove(tmp_path / "model.safetensors")
    torch.save({"model.norm.weight": Evil()}, tmp_path / name)
    with pytest.raises(UserError, match="holds more than tensors"):
        read_model(tmp_path if name == PICKLED else tmp_path / name, tokenizer=tokenizer)
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="holds more than tensors, or is damaged"):
        read_model(tmp_path if name == PICKLED else tmp_path / name, tokenizer=tokenizer)
    assert not (tmp_path / "unpickled").exists()


def test_sources_that_are_no_model_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_model(tmp_path / "none")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(UserError, match="not a model file that mmcli knows"):
        read_model(tmp_path / "text.txt")
    saved(tmp_path / "model", tokenizer)
    with pytest.raises(UserError, match="holds weights alone") as raised:
        read_model(tmp_path / "model" / "model.safetensors")
    assert "folder" in raised.value.fix
    os.remove(tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"has no model\.safetensors, .* or pytorch_model\.bin"):
        read_model(tmp_path / "model")
