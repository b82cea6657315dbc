"""What the tensors of a MiniMind `.pth` say, and what a person has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcli.config import parse_set
from mmcli.errors import UserError
from mmcli.model.formats.read import read_model
from mmcli.text.tokenizer import Tokenizer


def state_dict(
    dim: int, q: int, k: int, ffn: int, *, vocab: int = 400, layers: int = 1, **parts: int
) -> dict[str, Any]:
    """A state dict in the names since 2025-04, mostly zeros; parts: experts, shared experts, norm (width of a head)."""
    state: dict[str, Tensor] = {"model.embed_tokens.weight": torch.randn(vocab, dim)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes = {"q": (q, dim), "k": (k, dim), "v": (k, dim), "o": (dim, q)}
        state |= {f"{at}self_attn.{name}_proj.weight": torch.zeros(shape) for name, shape in shapes.items()}
        state |= {f"{at}{name}_layernorm.weight": torch.ones(dim) for name in ("input", "post_attention")}
        if "norm" in parts:
            state |= {f"{at}self_attn.{name}_norm.weight": torch.ones(parts["norm"]) for name in "qk"}
        ffns = [f"{at}mlp.experts.{n}." for n in range(parts.get("experts", 0))]
        ffns += [f"{at}mlp.shared_experts.{n}." for n in range(parts.get("shared", 0))]
        for prefix in ffns or [f"{at}mlp."]:
            state |= {f"{prefix}{name}_proj.weight": torch.zeros(ffn, dim) for name in ("gate", "up")}
            state[f"{prefix}down_proj.weight"] = torch.zeros(dim, ffn)
        if "experts" in parts:
            state[f"{at}mlp.gate.weight"] = torch.zeros(parts["experts"], dim)
    state["model.norm.weight"] = torch.ones(dim)
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"]}


def read(path: Path, state: Any, tokenizer: Tokenizer, *sets: str) -> Any:
    torch.save(state, path / "weights.pth")
    return read_model(path / "weights.pth", tokenizer=tokenizer, settings=parse_set(sets) if sets else None)


def test_the_released_small_model_is_known_by_its_shapes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = read(tmp_path, state_dict(512, 512, 128, 1408, layers=2), tokenizer)
    config = found.model.config
    assert (config.n_heads, config.n_kv_heads, config.d_head) == (8, 2, 64)
    assert (config.n_layers, config.hidden_dim, config.vocab_size) == (2, 1408, 400)
    assert (config.rope_theta, config.norm_eps, config.tie_embeddings) == (1e6, 1e-5, True)
    assert "8 query heads of 64" in found.notes[0]


def test_the_released_mixture_is_known_by_its_shapes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = read(tmp_path, state_dict(640, 640, 160, 64, experts=4, shared=1), tokenizer).model.config
    assert (config.n_heads, config.n_kv_heads, config.d_head) == (8, 2, 80)
    assert (config.n_routed_experts, config.n_shared, config.num_experts_per_tok) == (4, 1, 2)
    assert config.norm_topk_prob and config.aux_loss_alpha == 0.1


def test_minimind_3_tells_the_width_of_its_heads(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = read(tmp_path, state_dict(768, 768, 384, 64, norm=96, experts=4), tokenizer).model.config
    assert (config.n_heads, config.n_kv_heads, config.qk_norm) == (8, 4, True)
    assert (config.norm_eps, config.num_experts_per_tok, config.n_shared) == (1e-6, 1, 0)


def test_other_heads_are_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    wide = state_dict(1024, 1024, 256, 64)
    with pytest.raises(UserError, match=r"q_proj\.weight \[1024, 1024\] .* may be of any heads") as raised:
        read(tmp_path, wide, tokenizer)
    assert "--set model.n_heads=" in raised.value.fix
    config = read(tmp_path, wide, tokenizer, "model.n_heads=16", "model.rope_theta=10000").model.config
    assert (config.n_heads, config.n_kv_heads, config.d_head, config.rope_theta) == (16, 4, 64, 10000.0)
    config = read(tmp_path, wide, tokenizer, "model.head_dim=32").model.config
    assert (config.n_heads, config.n_kv_heads, config.d_head) == (32, 8, 32)
    # as wide as the released, but of the older MiniMind's 2 query heads to a key head
    with pytest.raises(UserError, match="may be of any heads"):
        read(tmp_path, state_dict(512, 512, 256, 64), tokenizer)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.n_heads=7", "not 7 query heads"),
        ("model.n_heads=0", "is not positive"),
        ("model.n_layers=2", "missing: model.layers.1"),
        ("model.heads=8", 'unknown key "model.heads"'),
        ("model.n_heads=many", "is not a whole number"),
    ],
)
def test_settings_that_the_tensors_contradict_are_refused(
    setting: str, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, state_dict(512, 512, 128, 64), tokenizer, setting)


def test_settings_are_for_checkpoints_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"--set model\.n_heads with .*folder, which holds its own configuration"):
        read_model(tmp_path / "folder", settings=parse_set(["model.n_heads=8"]))


def test_a_tokenizer_has_to_be_given(tmp_path: Path) -> None:
    torch.save(state_dict(512, 512, 128, 64), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="without a tokenizer") as raised:
        read_model(tmp_path / "weights.pth")
    assert "--tokenizer DIR" in raised.value.fix


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {"w": torch.ones(1)}, "step": 3}, "its entry 'model' is a dict, not a tensor"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({"lora.A": torch.ones(2, 2)}, r"has no model\.embed_tokens\.weight \(it holds lora\.A"),
        ({**state_dict(512, 512, 128, 64), "extra.weight": torch.ones(1)}, r"unexpected: extra\.weight"),
        ({**state_dict(512, 512, 128, 64), "model.norm.weight": torch.ones(512).int()}, r"model\.norm\.weight is not"),
        ({"model.embed_tokens.weight": torch.ones(4)}, r"model\.embed_tokens\.weight \[4\] is not a matrix"),
    ],
)
def test_what_is_no_state_dict_of_minimind_is_refused(
    state: Any, message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, state, tokenizer)


def test_a_damaged_file_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    torch.save(state_dict(512, 512, 128, 64), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello"):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read_model(tmp_path / "weights.pth", tokenizer=tokenizer)


def test_an_untied_head_stays_untied(tmp_path: Path, tokenizer: Tokenizer) -> None:
    state = {**state_dict(512, 512, 128, 64), "lm_head.weight": torch.ones(400, 512)}
    model = read(tmp_path, state, tokenizer).model
    assert not model.config.tie_embeddings and torch.equal(model.head_weight, torch.ones(400, 512))
