"""GGUF: each architecture as a table of its metadata keys, and the names of tensors, in both directions.

The metadata leaves out what tensors show (vocabulary, biases, an untied head). Keys are prefixed with the
architecture: `llama.block_count`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmcli.config import ConfigError
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.fields import (
    ROUTING,
    TRAINING,
    FieldTable,
    Implied,
    Irrelevant,
    Rule,
    Silent,
    Values,
    described,
)
from mmcli.model.formats.names import Layout, NameTable
from mmcli.model.formats.weights import Weights
from mmcli.model.rotary import rotary_frequencies

NAMES = NameTable((
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    *((f"model.layers.{{}}.self_attn.{each}_proj", f"blk.{{}}.attn_{each}") for each in "qkv"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    *((f"model.layers.{{}}.self_attn.{each}_norm", f"blk.{{}}.attn_{each}_norm") for each in "qk"),
    ("model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"),
    *(
        (f"model.layers.{{}}.mlp.{ours}{each}_proj", f"blk.{{}}.ffn_{each}{theirs}")
        for each in ("gate", "up", "down")
        for ours, theirs in (("", ""), ("experts.", "_exps"), ("shared_experts.0.", "_shexp"))
    ),
))  # fmt: skip
STACKED = Layout(NameTable(()), experts="stacked")  # of the tensors, once they have our names
ROTARY_FACTORS = "rope_freqs.weight"  # a divisor for each rotary pair
LLAMA3_SEQ_LEN = 8192  # the context of Llama 3 before its rotary was scaled
HARMLESS = {"vocab_size", "rope.scaling.finetuned"}  # keys that change nothing in what the model computes


@dataclass(frozen=True)
class Metadata:
    """What a configuration is read from."""

    path: Path
    prefix: str
    values: Mapping[str, Any]  # below `prefix`
    weights: Weights  # in GGUF's names

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; UserError if there is none, or one for each layer."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unsupported(key, "give a file with one whole number there, the same for all layers")
        return value

    def unsupported(self, key: str, fix: str) -> UserError:
        """The error for a key that is missing, or of a value that mmcli cannot compute with."""
        if key not in self.values:
            return UserError(f"{self.path} has no {self.prefix}{key}", fix)
        return UserError(f"{self.path}: {self.prefix}{key} = {self.values[key]!r} is not supported", fix)


class Whole(Silent):
    """A field under a key that holds a whole number; `also_written` names a second key, which is not read."""

    def __init__(self, field: str, key: str, attribute: str | None = None, also_written: str | None = None) -> None:
        self.field, self.key, self.attribute = field, key, attribute or field
        self.keys = (key,) if also_written is None else (key, also_written)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return dict.fromkeys(self.keys, getattr(config, self.attribute))

    def read(self, source: Metadata, values: Values) -> Values:
        return {self.field: source.whole(self.key)}


class Heads(Silent):
    """n_kv_heads, without which every query head has its own keys, and the width of a head, all of which is rotated."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("n_kv_heads", "head_dim")

    def write(self, config: ModelConfig) -> dict[str, Any]:
        widths = dict.fromkeys(HEAD_WIDTHS, config.d_head)
        return {"attention.head_count_kv": config.n_kv_heads, **widths}

    def read(self, source: Metadata, values: Values) -> Values:
        heads, dim = values["n_heads"], values["dim"]
        width = source.whole(HEAD_WIDTHS[0], dim // heads if heads else 0)
        for key in HEAD_WIDTHS[1:]:
            if source.values.get(key, width) != width:
                raise source.unsupported(key, f"mmcli runs models where it is the head's width, {width}")
        n_kv_heads = source.whole("attention.head_count_kv", heads)
        return {"n_kv_heads": n_kv_heads, "head_dim": None if width * heads == dim else width}


class Epsilon(Silent):
    """norm_eps, in fp32."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("norm_eps",)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {EPSILON: config.norm_eps}

    def read(self, source: Metadata, values: Values) -> Values:
        if not isinstance(source.values.get(EPSILON), float):
            raise source.unsupported(EPSILON, OTHER_FILE)
        return {"norm_eps": _short(source.values[EPSILON])}


class InTensors(Silent):
    """Fields that the tensors alone show."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("vocab_size", "tie_embeddings")

    def read(self, source: Metadata, values: Values) -> Values:
        return {
            "vocab_size": source.weights.shape("token_embd.weight")[0],
            "tie_embeddings": "output.weight" not in source.weights.entries,
        }


class Biases(Silent):
    """bias, which the tensors show."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("bias",)

    def read(self, source: Metadata, values: Values) -> Values:
        return {"bias": "blk.0.attn_q.bias" in source.weights.entries}


class Experts(Silent):
    """Routed and shared experts as llama.cpp computes them here: softmax scores, the chosen ones divided by their sum.

    `dense`: the architecture has models without experts; `routed`: it has models with them; `shared`: those may have
    shared ones, which are one FFN of their joined width.
    """

    def __init__(self, *, dense: bool = False, routed: bool = True, shared: bool = False) -> None:
        self.dense, self.routed, self.shared = dense, routed, shared

    @property
    def fields(self) -> tuple[str, ...]:
        return ("use_moe", *ROUTING)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        if not (config.use_moe and self.routed):
            return {}
        keys = {"expert_count": config.n_routed_experts, "expert_used_count": config.num_experts_per_tok}
        return keys | ({SHARED_WIDTH: config.n_shared * config.ffn_dim} if self.shared else {})

    def read(self, source: Metadata, values: Values) -> Values:
        if not self.routed or (self.dense and not source.whole("expert_count", 0)):
            return {"use_moe": False}
        counts = {"n_routed_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
        found: Values = {field: source.whole(key) for field, key in counts.items()}
        width, each = source.whole(SHARED_WIDTH, 0), values["hidden_dim"]
        if each < 1 or width % each:
            raise source.unsupported(SHARED_WIDTH, f"mmcli runs models where it is a multiple of {each}")
        return {"use_moe": True, **found, "n_shared_experts": width // each}

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        if not config.use_moe:
            return () if self.dense else ("use_moe",)
        if not self.routed:
            return ("use_moe",)
        wanted: Values = {"scoring_func": "softmax", "norm_topk_prob": True}
        if not self.shared:
            wanted["n_shared_experts"] = 0
        return tuple(field for field, value in wanted.items() if getattr(config, field) != value)


class GraniteScales(Silent):
    """Granite's factors, as if there were none."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {**dict.fromkeys(GRANITE_SCALES, 1.0), "attention.scale": config.d_head**-0.5}

    def read(self, source: Metadata, values: Values) -> Values:
        width = values["head_dim"] or values["dim"] // values["n_heads"]
        usual = {**dict.fromkeys(GRANITE_SCALES, 1.0), "attention.scale": width**-0.5}
        for key, value in usual.items():
            found = source.values.get(key, value)
            if not isinstance(found, float) or not math.isclose(found, value, rel_tol=1e-6):
                raise source.unsupported(key, f"mmcli runs models where it is {value:g}")
        return {}


class Rope(Silent):
    """Rotary settings; Llama 3's scaling is not a key but the tensor `rope_freqs`."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", "rope_factor", "rope_original_seq_len")

    def write(self, config: ModelConfig) -> dict[str, Any]:
        keys: dict[str, Any] = {"rope.freq_base": config.rope_theta}
        if config.rope_scaling in ("linear", "yarn"):
            keys |= {"rope.scaling.type": config.rope_scaling, "rope.scaling.factor": config.rope_factor}
        if config.rope_scaling == "yarn":
            keys["rope.scaling.original_context_length"] = config.original_seq_len
        return keys

    def unsupported(self, config: ModelConfig) -> tuple[str, ...]:
        other = config.rope_scaling == "llama3" and config.original_seq_len != LLAMA3_SEQ_LEN
        return ("rope_original_seq_len",) if other else ()

    def read(self, source: Metadata, values: Values) -> Values:
        found = _read_rope(source)
        return found | _read_rotary_factors(source, {**values, **found})


def _read_rope(source: Metadata) -> Values:
    own = source.values
    values: Values = {"rope_theta": _short(own.get("rope.freq_base", 10000.0))}
    kind = own.get("rope.scaling.type", "none")
    if kind == "none":
        return values
    if kind not in ("linear", "yarn") or "rope.scaling.factor" not in own:
        raise source.unsupported("rope.scaling.type", "mmcli scales rotary by linear or yarn, with a factor")
    values |= {"rope_scaling": kind, "rope_factor": _short(own["rope.scaling.factor"])}
    if kind == "yarn":
        values["rope_original_seq_len"] = own.get("rope.scaling.original_context_length")
    return values


def _read_rotary_factors(source: Metadata, values: Values) -> Values:
    """The scaling of Llama 3.1, where the tensor holds its divisors."""
    if ROTARY_FACTORS not in source.weights.entries:
        return {}
    factors = source.weights.entries[ROTARY_FACTORS].read()
    factor = _short(float(factors.max()))
    scaling: Values = {"rope_scaling": "llama3", "rope_factor": factor, "rope_original_seq_len": LLAMA3_SEQ_LEN}
    try:
        config = ModelConfig(**values)
        expected = rotary_frequencies(config)[0] / rotary_frequencies(dataclasses.replace(config, **scaling))[0]
        same = factors.shape == expected.shape and torch.allclose(factors, expected, rtol=1e-4)
    except ConfigError:
        same = False
    if not same:
        what = f"{source.path}: {ROTARY_FACTORS} scales rotary otherwise than Llama 3.1 does, which is not supported"
        raise UserError(what, OTHER_FILE)
    return scaling


def rotary_factors(config: ModelConfig) -> torch.Tensor | None:
    """The tensor `rope_freqs` of a model, [rotary_dim / 2] in fp32: the divisors of Llama 3.1's scaling, else None."""
    if config.rope_scaling != "llama3":
        return None
    plain = dataclasses.replace(config, rope_scaling="none", rope_factor=1.0, rope_original_seq_len=None)
    return rotary_frequencies(plain)[0] / rotary_frequencies(config)[0]


def _short(value: float) -> float:
    """An fp32 number of the metadata as people write it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`."""

    table: FieldTable[Metadata]
    adjacent_rotary: bool  # q and k are stored for rotary pairs (2i, 2i+1)

    def read(self, source: Metadata) -> Values:
        """The ModelConfig fields; a key that no rule reads is refused, for it may change what the model computes.

        Raises:
            UserError: such a key, one that is missing, or of a value that mmcli cannot compute with.
        """
        known = set(self.table.write(EVERY_KEY)) | HARMLESS
        for key in source.values:
            if key not in known:
                raise source.unsupported(key, "mmcli does not know what this field changes")
        return self.table.read(source)


HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
GRANITE_SCALES = ("embedding_scale", "residual_scale", "logit_scale")
EPSILON = "attention.layer_norm_rms_epsilon"
SHARED_WIDTH = "expert_shared_feed_forward_length"
EVERY_KEY = ModelConfig(rope_scaling="yarn", rope_factor=2.0, use_moe=True)  # a table writes all its keys for this


def _table(*rules: Rule[Metadata], qk_norm: bool, width: Whole | None = None) -> FieldTable[Metadata]:
    return FieldTable((
        Whole("n_heads", "attention.head_count"), Whole("dim", "embedding_length"), Heads(), Epsilon(),
        Whole("n_layers", "block_count"), width or Whole("hidden_dim", "feed_forward_length", "ffn_dim"),
        Whole("max_seq_len", "context_length"), InTensors(), Rope(), *rules,
        Implied(
            qk_norm=qk_norm, norm="rmsnorm", position="rope", rotary_fraction=1.0, mlp="swiglu",
            head_bias=False, parallel_block=False, sliding_window=None,
        ),
        Irrelevant("multiple_of", *TRAINING),
    ))  # fmt: skip


EXPERT_WIDTH = Whole("hidden_dim", "expert_feed_forward_length", "ffn_dim", also_written="feed_forward_length")
NO_BIAS = Implied(bias=False)
ARCHITECTURES = {  # in order of preference for writing
    "llama": Architecture(_table(Experts(dense=True), Biases(), qk_norm=False), True),
    "qwen3": Architecture(_table(Experts(dense=True, routed=False), NO_BIAS, qk_norm=True), False),
    "qwen3moe": Architecture(_table(Experts(), NO_BIAS, qk_norm=True, width=EXPERT_WIDTH), False),
    "granitemoe": Architecture(_table(Experts(shared=True), GraniteScales(), NO_BIAS, qk_norm=False), True),
}
OTHER_FILE = f"mmcli reads GGUF models of {', '.join(ARCHITECTURES)}"


def find_architecture(config: ModelConfig) -> str:
    """The first `general.architecture` that holds all of `config`, so that llama.cpp computes the same.

    Raises:
        UserError: there is none, with the fields that keep the model from the nearest.
    """
    misfits = {name: each.table.unsupported(config) for name, each in ARCHITECTURES.items()}
    structure = {"use_moe", "n_shared_experts"}  # a table that differs there is of another kind of model
    name = min(misfits, key=lambda name: (len(misfits[name]), len(structure.intersection(misfits[name]))))
    if misfits[name]:
        fields = described(config, misfits[name])
        what = f"no GGUF architecture that mmcli writes has this model; the nearest, {name}, differs in: {fields}"
        raise UserError(what, "run it with mmcli, or for other programs: mmcli export onnx")
    return name
