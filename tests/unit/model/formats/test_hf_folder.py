from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmcli.errors import UserError
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.formats import parameters
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.transformer import Transformer
from mmcli.text.chat import stop_ids
from mmcli.text.definition import added_token
from mmcli.text.tokenizer import Tokenizer

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 50, "max_seq_len": 32, "hidden_dim": 48}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied, with head bias": {"tie_embeddings": False, "head_bias": True},
    "qwen3": {"qk_norm": True},
    "mistral": {"sliding_window": 4},
    "moe, shared": {"use_moe": True, "n_shared_experts": 2},
    "mixtral": {"use_moe": True, "n_shared_experts": 0},
    "qwen3 moe": {"use_moe": True, "n_shared_experts": 0, "qk_norm": True},
    "ungated experts": {"use_moe": True, "mlp": "gelu"},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
    "gpt2, grouped": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True},
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False,
    },
}  # fmt: skip


class Ids:
    """The parts of a tokenizer that `save_model` needs; it has no chat template."""

    bos_id: int | None = 0
    eos_id: int | None = 2
    pad_id = 0
    chat_template = None

    definition = SimpleNamespace(more_eos_ids=())

    def control_id(self, token: str) -> int | None:
        return None

    def control_token(self, id: int) -> str | None:
        return None

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def saved(folder: Path, **values: Any) -> Transformer:
    model = Transformer(ModelConfig(**SIZES, **values), seed=1)
    save_model(folder, model, model.config, Ids())
    return model


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a folder's weights; None takes one away."""
    state: dict[str, Any] = {**load_file(folder / "model.safetensors"), **tensors}
    kept = {name: each for name, each in state.items() if each is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", **KINDS[kind])
    again = load_model(tmp_path / "model")
    assert again.config == model.config and not again.training
    assert list(again.state_dict()) == list(model.state_dict())
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
        assert again.get_parameter(name).requires_grad and again.get_parameter(name).is_contiguous()
    ids, ctx = torch.arange(20).view(2, 10), AttnContext.causal(2, 10)
    assert torch.equal(again(ids, ctx)[0], model.eval()(ids, ctx)[0])


def test_a_folder_is_complete(tmp_path: Path) -> None:
    model = Transformer(ModelConfig(**SIZES))
    save_model(tmp_path, model, model.config, Ids(), extra={"Run": "0007-sft-small", "Tokens": "1,000"})
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert {each.name for each in tmp_path.iterdir()} == names
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| Run | 0007-sft-small |" in card and f"{sum(p.numel() for p in model.parameters()):,}" in card
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert "lm_head.weight" not in names and "model.embed_tokens.weight" in names  # tied: written once


def test_experts_are_single_tensors_on_disk(tmp_path: Path) -> None:
    model = saved(tmp_path, use_moe=True, n_shared_experts=1)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = {name.removeprefix("model.layers.1.mlp.") for name in tensors if name.startswith("model.layers.1.mlp.")}
    projections = ("gate_proj", "up_proj", "down_proj")
    single = {f"experts.{e}.{each}.weight" for e in range(4) for each in projections}
    assert layer == {"gate.weight", *single, *(f"shared_experts.0.{each}.weight" for each in projections)}
    stacked = model.get_parameter("model.layers.1.mlp.experts.up_proj")
    assert torch.equal(tensors["model.layers.1.mlp.experts.2.up_proj.weight"], stacked[2])


def test_types_are_kept_on_disk_and_asked_for_when_loading(tmp_path: Path) -> None:
    model = Transformer(ModelConfig(**SIZES)).bfloat16()
    save_model(tmp_path, model, model.config, Ids())
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    assert all(each.dtype == torch.bfloat16 for each in load_file(tmp_path / "model.safetensors").values())
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(tmp_path, dtype=dtype)
        assert all(each.dtype == dtype for each in loaded.parameters())
        assert torch.equal(loaded.head_weight.bfloat16(), model.head_weight)


def test_a_loaded_model_does_not_hold_on_to_its_file(tmp_path: Path) -> None:
    model = saved(tmp_path)
    loaded = load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(loaded.head_weight, model.head_weight)


def test_shards_are_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in sorted(set(places.values())):
        save_file({name: each for name, each in tensors.items() if places[name] == part}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert torch.equal(load_model(tmp_path).head_weight, model.head_weight)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no part-1\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"missing: model\.norm\.weight"),
        ({"model.layers.9.input_layernorm.weight": torch.ones(32)}, r"unexpected: model\.layers\.9\.input_layernorm"),
        ({"model.norm.weight": torch.ones(33)}, r"of another shape: model\.norm\.weight \[33\] instead of \[32\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_stored_head_must_be_the_tied_embedding(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path, **KINDS[kind])
    rewrite(tmp_path, **{"lm_head.weight": model.head_weight.detach().clone()})
    assert torch.equal(load_model(tmp_path).head_weight, model.head_weight)
    rewrite(tmp_path, **{"lm_head.weight": model.head_weight.detach() + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_model(tmp_path)


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["mmcli"]["n_layers"] = config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"missing: model\.layers\.2\..* and 4 more"):
        load_model(tmp_path)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_model(tmp_path)


def sharded(folder: Path, shard: str) -> None:
    """The folder's weights behind an index that names one shard."""
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = load_file(folder / "part.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(names, shard)})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


@pytest.mark.parametrize("shard", ["../other/part.safetensors", "/etc/part.safetensors", "a/../../part.safetensors"])
def test_an_index_may_not_name_files_outside_its_folder(shard: str, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    saved(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "other" / "part.safetensors")
    sharded(tmp_path / "model", shard)
    with pytest.raises(UserError, match=r"index\.json names '.*part\.safetensors', which is outside its folder"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": 3}', "{"])
def test_a_broken_index_is_named(index: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(UserError, match="is not an index of weights"):
        load_model(tmp_path)


def test_shards_in_a_folder_below_are_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    sharded(tmp_path, "shards/part.safetensors")
    (tmp_path / "shards").mkdir()
    (tmp_path / "part.safetensors").rename(tmp_path / "shards" / "part.safetensors")
    assert torch.equal(load_model(tmp_path).head_weight, model.head_weight)


@pytest.mark.parametrize(
    ("key", "name", "size", "says"),
    [
        ("n_layers", "num_hidden_layers", 10**9, r"n_layers = [\d,]{13,} is above"),
        ("vocab_size", "vocab_size", 10**30, r"vocab_size = 10+ is not a whole number"),
        ("hidden_dim", "intermediate_size", 10**12, r"hidden_dim = [\d,]{17,} is above"),
        ("n_routed_experts", "n_routed_experts", 10**9, r"n_routed_experts = [\d,]{13,} is above"),
        ("n_layers", "num_hidden_layers", 4096, r"holds [\d,]+ tensors, and describes 4,096 layers"),
        ("vocab_size", "vocab_size", 4 * 10**6, r"holds [\d,]+ numbers, .* describes [\d,]{10,}"),
        ("hidden_dim", "intermediate_size", 10**6, r"holds [\d,]+ numbers, .* describes [\d,]{10,}"),
        ("n_routed_experts", "n_routed_experts", 4096, r"holds [\d,]+ numbers, .* describes [\d,]{9,}"),
    ],
)
def test_absurd_sizes_are_refused_before_a_model_is_made(
    key: str, name: str, size: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, use_moe=True)
    document = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    document["mmcli"][key] = document[name] = size
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(parameters, "Transformer", None)  # making one would take all memory
    with pytest.raises(UserError, match=says):
        load_model(tmp_path)


def test_every_file_has_the_same_mode(tmp_path: Path) -> None:
    saved(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


GEMMA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_generation_config_ends_a_reply_where_chat_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A template whose turns end otherwise than texts do."""
    vocab = tokenizer.vocab_size
    definition = tokenizer.definition
    added = [*definition.tokenizer["added_tokens"], added_token("<|turn|>", vocab, special=True)]
    changed = dataclasses.replace(
        definition, tokenizer={**definition.tokenizer, "added_tokens": added}, chat_template=GEMMA
    )
    other = Tokenizer(changed)
    assert other.eos_id != vocab and vocab in stop_ids(other)
    model = Transformer(ModelConfig(**{**SIZES, "vocab_size": 400}))
    save_model(tmp_path, model, model.config, other)
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"][0] == other.eos_id
    assert set(generation["eos_token_id"]) == stop_ids(other)
    assert stop_ids(Tokenizer.load(tmp_path)) == stop_ids(other)
