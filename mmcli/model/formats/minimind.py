"""MiniMind checkpoints: a bare state dict in a `.pth`, no configuration inside.

Names until 2025-04 (`tok_embeddings`, `attention.wq`, ...) come with rotary on neighbouring features; those since then
(`model.embed_tokens`, `self_attn.q_proj`, ...) are Llama's and rotate halves. https://github.com/jingyaogong/minimind
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mmcli.config import Layer, convert, leaves, option, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.families import MINIMIND
from mmcli.model.formats.fields import FieldTable, Implied, Irrelevant, Silent, Values
from mmcli.model.formats.names import EMBEDDING, HEAD, NameTable
from mmcli.model.formats.parameters import build_model, to_halves
from mmcli.model.formats.weights import Weights, read_pickled
from mmcli.model.transformer import Transformer

FIRST_EMBEDDING = "tok_embeddings.weight"
FIRST_NAMES = NameTable((
    ("model.embed_tokens", "tok_embeddings"),
    ("model.norm", "norm"),
    ("lm_head", "output"),
    ("model.layers.{}.input_layernorm", "layers.{}.attention_norm"),
    ("model.layers.{}.post_attention_layernorm", "layers.{}.ffn_norm"),
    *((f"model.layers.{{}}.self_attn.{each}_proj", f"layers.{{}}.attention.w{each}") for each in "qkvo"),
    *(
        (f"model.layers.{{}}.mlp.{ours}{projection}_proj", f"layers.{{}}.feed_forward.{theirs}{matrix}")
        for ours, theirs in (
            ("", ""), ("experts.{}.", "experts.{}."), ("shared_experts.0.", "shared_experts."),
            ("shared_experts.{}.", "shared_experts.{}."),
        )
        for projection, matrix in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    ),
    ("model.layers.{}.mlp.gate", "layers.{}.feed_forward.gate"),
))  # fmt: skip
BUFFERS = re.compile(r"(^|\.)(pos_cis|freqs_cos|freqs_sin|attention\.mask)$")  # tables, not parameters
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
# Every released MiniMind has 8 query heads; MiniMind2 has these widths and 4 query heads to a key head.
RELEASED_HEADS, RELEASED_WIDTHS, RELEASED_GROUP = 8, (512, 640, 768), 4
LAYER_0 = "model.layers.0."
LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Settings:
    """The keys of `--set model.KEY=VALUE`."""

    model: ModelConfig = option(ModelConfig, "the model")


def read_minimind(path: Path, settings: Layer | None = None) -> tuple[Transformer, str]:
    """(the model, its settings that a .pth does not store, in words).

    Args:
        settings: `--set` of the person, for what tensors do not show (`model.n_heads`, `model.rope_theta`, ...).

    Raises:
        UserError: not a state dict of MiniMind, heads that cannot be known, or settings that the tensors contradict.
    """
    weights = read_pickled(path, [path]).renamed(lambda name: WRAPPERS.sub("", name))
    first = FIRST_EMBEDDING in weights.entries
    weights = _rename(weights)
    config = _infer_config(StateDict(weights, first, settings))
    if first:
        weights = to_halves(weights, config)
    experts = f", {config.num_experts_per_tok} experts per token" if config.use_moe else ""
    assumed = (
        f"{config.n_heads} query heads of {config.d_head}, rope_theta {config.rope_theta:g}, "
        f"norm_eps {config.norm_eps:g}{experts}"
    )
    return build_model(weights, config, MINIMIND.layout), assumed


def convert_names(weights: Weights, config: ModelConfig) -> Weights:
    """MiniMind's tensors of either naming in today's names, with rotary that rotates halves."""
    renamed = _rename(weights)
    return to_halves(renamed, config) if FIRST_EMBEDDING in weights.entries else renamed


def _rename(weights: Weights) -> Weights:
    """Today's names, without the tables of angles and masks; rotary is as it was."""
    weights = weights.without(name for name in weights.entries if BUFFERS.search(name))
    return weights.renamed(FIRST_NAMES.to_memory) if FIRST_EMBEDDING in weights.entries else weights


@dataclass(frozen=True)
class StateDict:
    """The checkpoint that a configuration is inferred from."""

    weights: Weights  # in today's names
    first: bool  # it had the names until 2025-04
    settings: Layer | None

    def rows(self, name: str) -> int:
        """Rows of a matrix."""
        return _matrix(self.weights, name)[0]

    @property
    def is_third(self) -> bool:
        """minimind-3: qk-norm, one expert per token, balanced over the batch."""
        return f"{LAYER_0}self_attn.q_norm.weight" in self.weights.entries


class Inferred(Silent):
    """Fields that the tensors show; where they do not, those of the released models."""

    def __init__(self, *fields: str, infer: Callable[[StateDict], Values]) -> None:
        self._fields, self.infer = fields, infer

    @property
    def fields(self) -> tuple[str, ...]:
        return self._fields

    def read(self, source: StateDict, values: Values) -> Values:
        return self.infer(source)


def _infer_config(source: StateDict) -> ModelConfig:
    layers = [Layer(f"the tensors of {source.weights.where}", {"model": TABLE.read(source)})]
    return resolve(_Settings, [*layers, source.settings] if source.settings else layers).config.model


def _infer_sizes(source: StateDict) -> Values:
    vocab_size, dim = _matrix(source.weights, EMBEDDING)
    numbers = (int(found[1]) for found in map(LAYER.match, source.weights.entries) if found)
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "n_layers": 1 + max(numbers, default=-1),
        "tie_embeddings": _is_tied(source.weights),
    }


def _infer_release(source: StateDict) -> Values:
    return {
        "qk_norm": source.is_third,
        "norm_eps": 1e-6 if source.is_third else 1e-5,
        "max_seq_len": 8192 if source.first else 32768,
    }


def _infer_ffn(source: StateDict) -> Values:
    router = f"{LAYER_0}mlp.gate.weight"
    if router not in source.weights.entries:
        return {"use_moe": False, "hidden_dim": source.rows(f"{LAYER_0}mlp.gate_proj.weight")}
    shared = [name for name in source.weights.entries if name.startswith(f"{LAYER_0}mlp.shared_experts.")]
    values = {
        "use_moe": True,
        "n_routed_experts": source.rows(router),
        "n_shared_experts": len({name.split(".")[5] for name in shared}),
        "hidden_dim": source.rows(f"{LAYER_0}mlp.experts.0.gate_proj.weight"),
    }
    third = {"num_experts_per_tok": 1, "aux_loss_alpha": 5e-4, "seq_aux": False}
    return {**values, **third} if source.is_third else values


def _infer_heads(source: StateDict) -> Values:
    """n_heads, n_kv_heads and head_dim: from the norm of a head, the person, or the released models."""
    weights, settings = source.weights, source.settings
    q_name, k_name = (f"model.layers.0.self_attn.{each}_proj.weight" for each in "qk")
    (q_rows, dim), (k_rows, _) = _matrix(weights, q_name), _matrix(weights, k_name)
    heads, width = _setting(settings, "model.n_heads"), _setting(settings, "model.head_dim")
    if heads is None and width is None and source.is_third:
        width = weights.shape("model.layers.0.self_attn.q_norm.weight")[0]
    if heads is None and width is not None:
        heads = q_rows // width
    if heads is None:
        if dim not in RELEASED_WIDTHS or q_rows != dim or q_rows != RELEASED_GROUP * k_rows:
            what = f"{weights.where}: {q_name} [{q_rows}, {dim}] and {k_name} [{k_rows}, {dim}] may be of any heads"
            raise UserError(what, "set the number of query heads it was trained with: --set model.n_heads=8")
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
        raise UserError(
            f"{weights.where}: {name} {list(shape)} is not a matrix", "give the weights of a MiniMind model"
        )
    return shape[0], shape[1]


def _is_tied(weights: Weights) -> bool:
    if HEAD not in weights.entries:
        return True
    return torch.equal(weights.entries[EMBEDDING].read(), weights.entries[HEAD].read())


# Each field: from the tensors, or as released; `--set` overrides it.
TABLE: FieldTable[StateDict] = FieldTable((
    Inferred("vocab_size", "dim", "n_layers", "tie_embeddings", infer=_infer_sizes),
    Inferred("qk_norm", "norm_eps", "max_seq_len", infer=_infer_release),
    Inferred("n_heads", "n_kv_heads", "head_dim", infer=_infer_heads),
    Inferred(
        "use_moe", "hidden_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "aux_loss_alpha",
        "seq_aux", infer=_infer_ffn,
    ),
    Implied(
        rope_theta=1e6, rope_scaling="none", rotary_fraction=1.0, sliding_window=None, norm="rmsnorm", position="rope",
        mlp="swiglu", bias=False, head_bias=False, parallel_block=False, scoring_func="softmax", norm_topk_prob=True,
    ),
    Irrelevant("rope_factor", "rope_original_seq_len", "multiple_of", "dropout", "flash_attn", "init_std"),
))  # fmt: skip
