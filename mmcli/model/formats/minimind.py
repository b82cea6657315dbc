"""MiniMind checkpoints: a bare state dict in a `.pth`, no configuration inside.

Names until 2025-04 (`tok_embeddings`, `attention.wq`, ...) come with rotary on neighbouring features; those since then
(`model.embed_tokens`, `self_attn.q_proj`, ...) are Llama's and rotate halves. https://github.com/jingyaogong/minimind
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmcli.config import Layer, convert, leaves, option, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.weights import EMBEDDING, HEAD, Weights, build_model, read_pickled, to_halves
from mmcli.model.transformer import Transformer

FIRST_EMBEDDING = "tok_embeddings.weight"
FIRST_NAMES = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^layers\.", "model.layers."),
    (r"^norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.feed_forward\.", ".mlp."),
    (r"\.shared_experts\.w", ".shared_experts.0.w"),
    (r"\.w1\.", ".gate_proj."),
    (r"\.w2\.", ".down_proj."),
    (r"\.w3\.", ".up_proj."),
)
BUFFERS = re.compile(r"(^|\.)(pos_cis|freqs_cos|freqs_sin|attention\.mask)$")  # tables, not parameters
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
# Every released MiniMind has 8 query heads; MiniMind2 has these widths and 4 query heads to a key head.
RELEASED_HEADS, RELEASED_WIDTHS, RELEASED_GROUP = 8, (512, 640, 768), 4
LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Settings:
    """What `--set model.KEY=VALUE` can say."""

    model: ModelConfig = option(ModelConfig, "the model")


def read_minimind(path: Path, settings: Layer | None = None) -> tuple[Transformer, str]:
    """(the model, what it was taken to be beyond what its tensors say).

    Args:
        settings: `--set` of the person, for what tensors do not show (`model.n_heads`, `model.rope_theta`, ...).

    Raises:
        UserError: not a state dict of MiniMind, heads that cannot be known, or settings that the tensors contradict.
    """
    weights = read_pickled(path, [path]).renamed(lambda name: WRAPPERS.sub("", name))
    first = is_first_release(weights)
    weights = rename_first_release(weights) if first else drop_buffers(weights)
    config = _infer_config(weights, first, settings)
    if first:
        weights = to_halves(weights, config)
    experts = f", {config.num_experts_per_tok} experts a token" if config.use_moe else ""
    taken = (
        f"{config.n_heads} query heads of {config.d_head}, rotary base {config.rope_theta:g}, "
        f"norm epsilon {config.norm_eps:g}{experts}"
    )
    return build_model(weights, config, "minimind"), taken


def is_first_release(weights: Weights) -> bool:
    """True for the names, and the rotary, until 2025-04."""
    return FIRST_EMBEDDING in weights.entries


def rename_first_release(weights: Weights) -> Weights:
    """The names until 2025-04 as those since then; its rotary is still to be changed (`to_halves`)."""
    return drop_buffers(weights).renamed(_new_name)


def drop_buffers(weights: Weights) -> Weights:
    """Without MiniMind's tables of angles and masks."""
    return weights.without(name for name in weights.entries if BUFFERS.search(name))


def _new_name(name: str) -> str:
    for pattern, replacement in FIRST_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _infer_config(weights: Weights, first: bool, settings: Layer | None) -> ModelConfig:
    """The configuration from the tensors' shapes; where they are silent, that of the released models."""
    at = "model.layers.0."
    vocab_size, dim = _matrix(weights, EMBEDDING)
    qk_norm = f"{at}self_attn.q_norm.weight" in weights.entries
    values: dict[str, Any] = {
        "dim": dim,
        "vocab_size": vocab_size,
        "n_layers": 1 + max((int(found[1]) for found in map(LAYER.match, weights.entries) if found), default=-1),
        "qk_norm": qk_norm,
        "tie_embeddings": _is_tied(weights),
        "rope_theta": 1e6,
        "norm_eps": 1e-6 if qk_norm else 1e-5,
        "max_seq_len": 8192 if first else 32768,
        **_infer_heads(weights, qk_norm, settings),
    }
    router = f"{at}mlp.gate.weight"
    if router in weights.entries:
        shared = [name for name in weights.entries if name.startswith(f"{at}mlp.shared_experts.")]
        values |= {
            "use_moe": True,
            "n_routed_experts": _matrix(weights, router)[0],
            "n_shared_experts": len({name.split(".")[5] for name in shared}),
            "hidden_dim": _matrix(weights, f"{at}mlp.experts.0.gate_proj.weight")[0],
        }
        # minimind-3 chooses one expert and balances over the batch
        values |= {"num_experts_per_tok": 1, "aux_loss_alpha": 5e-4, "seq_aux": False} if qk_norm else {}
    else:
        values["hidden_dim"] = _matrix(weights, f"{at}mlp.gate_proj.weight")[0]
    layers = [Layer(f"the tensors of {weights.where}", {"model": values})]
    return resolve(_Settings, [*layers, settings] if settings else layers).config.model


def _infer_heads(weights: Weights, qk_norm: bool, settings: Layer | None) -> dict[str, int | None]:
    """n_heads, n_kv_heads and head_dim: from the norm of a head, the person, or the released models."""
    q_name, k_name = (f"model.layers.0.self_attn.{each}_proj.weight" for each in "qk")
    (q_rows, dim), (k_rows, _) = _matrix(weights, q_name), _matrix(weights, k_name)
    heads, width = _setting(settings, "model.n_heads"), _setting(settings, "model.head_dim")
    if heads is None and width is None and qk_norm:
        width = weights.shape("model.layers.0.self_attn.q_norm.weight")[0]
    if heads is None and width is not None:
        heads = q_rows // width
    if heads is None:
        if dim not in RELEASED_WIDTHS or q_rows != dim or q_rows != RELEASED_GROUP * k_rows:
            what = f"{weights.where}: {q_name} [{q_rows}, {dim}] and {k_name} [{k_rows}, {dim}] may be of any heads"
            raise UserError(what, "say how many query heads it was trained with: --set model.n_heads=8")
        heads = RELEASED_HEADS
    width = q_rows // heads if heads else 0
    if not width or heads * width != q_rows or k_rows % width:
        what = f"{weights.where}: {q_name} has {q_rows} rows, {k_name} {k_rows}: not {heads} query heads"
        raise UserError(what, "give --set model.n_heads a number that the model was trained with")
    kv_heads = k_rows // width
    return {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": None if heads * width == dim else width}


def _setting(settings: Layer | None, key: str) -> int | None:
    """A whole number of `--set`, None if it is not set."""
    if settings is None or key not in settings.values:
        return None
    leaf = next(leaf for leaf in leaves(_Settings) if leaf.key == key)
    value = convert(settings.values[key], leaf, settings.name)
    if value is not None and value < 1:
        raise UserError(f"{key} = {value} is not positive (from {settings.name})", "give 1 or more")
    return None if value is None else int(value)


def _matrix(weights: Weights, name: str) -> tuple[int, int]:
    shape = weights.shape(name)
    if len(shape) != 2:
        raise UserError(f"{weights.where}: {name} {list(shape)} is no matrix", "give the weights of a MiniMind model")
    return shape[0], shape[1]


def _is_tied(weights: Weights) -> bool:
    if HEAD not in weights.entries:
        return True
    return torch.equal(weights.entries[EMBEDDING].read(), weights.entries[HEAD].read())
