"""A GGUF file (llama.cpp's format): its metadata as a configuration, its tensors dequantized.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcli.config import ConfigError, Layer, resolve
from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.weights import Entry, Weights, build_model, to_halves
from mmcli.model.rotary import rotary_frequencies
from mmcli.model.transformer import Transformer

ARCHITECTURES = ("llama", "qwen3")
NAMES = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^blk\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^blk\.(\d+)\.attn_output\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^blk\.(\d+)\.attn_([qk])_norm\.", r"model.layers.\1.self_attn.\2_norm."),
    (r"^blk\.(\d+)\.attn_([qkv])\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"^blk\.(\d+)\.ffn_(gate|up|down)\.", r"model.layers.\1.mlp.\2_proj."),
)
# Keys below the architecture's name that are read, and those that change nothing in what the model computes.
READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length",
}  # fmt: skip
ROTARY_FACTORS = "rope_freqs.weight"
LLAMA3_SEQ_LEN = 8192  # what Llama 3 was trained on before it was stretched
HARMLESS = {"vocab_size", "rope.scaling.finetuned"}
OTHER_FILE = f"mmcli reads GGUF models of {' and '.join(ARCHITECTURES)}"


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file."""

    path: Path
    fields: Mapping[str, Any]  # metadata by key, as Python values
    weights: Weights  # in the file's names; each tensor is dequantized to fp32 when it is read


def open_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a GGUF file.

    Raises:
        UserError: the package `gguf` is not installed; the file is damaged, in parts, or of a type it cannot read.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"reading {path} needs the package gguf", "install it: pip install 'mmcli[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        entries = {each.name: _entry(path, each) for each in reader.tensors}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged or no GGUF file: {error}", "fetch it again") from None
    if fields.get("split.count", 1) > 1:
        what = f"{path}: split.count = {fields['split.count']}: the model lies in several files"
        raise UserError(what, "join them first: llama-gguf-split --merge")
    return GgufFile(path, fields, Weights(str(path), entries))


def _entry(path: Path, tensor: Any) -> Entry:
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read() -> Tensor:
        from gguf.quants import dequantize

        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            what = (
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the package gguf cannot dequantize"
            )
            raise UserError(what, "take a file of another quantization, such as Q8_0") from None
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape)

    return Entry(shape, torch.float32, read)


def build_gguf_model(file: GgufFile) -> Transformer:
    """The model of a GGUF file, in fp32.

    Raises:
        UserError: an architecture, a field or a tensor that mmcli does not know, by name.
    """
    config = read_gguf_config(file)
    weights = file.weights.without([ROTARY_FACTORS]).renamed(_new_name)
    if file.fields["general.architecture"] == "llama":  # its q and k are stored with rotary pairs side by side
        weights = to_halves(weights, config)
    return build_model(weights, config, "qwen3" if config.qk_norm else "llama")


def _new_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name, changed = re.subn(pattern, replacement, name)
        if changed:
            break
    return name


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """The configuration in a GGUF file's metadata.

    Raises:
        UserError: a field is missing, or says what mmcli cannot compute.
    """
    architecture = file.fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise _unsupported(file, "general.architecture", OTHER_FILE)
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in file.fields.items() if key.startswith(prefix)}
    for key in own:
        if key not in READ | HARMLESS:
            raise _unsupported(file, prefix + key, "mmcli does not know what this field changes")

    def need(key: str) -> int:
        value = own.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _unsupported(file, prefix + key, "give a file with one whole number there, the same for all layers")
        return value

    heads, dim = need("attention.head_count"), need("embedding_length")
    own.setdefault("attention.head_count_kv", heads)
    own.setdefault("attention.key_length", dim // heads if heads else 0)
    width = need("attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, width) != width:
            raise _unsupported(file, prefix + key, f"mmcli runs models where it is the head's width, {width}")
    eps = own.get("attention.layer_norm_rms_epsilon")
    if not isinstance(eps, float):
        raise _unsupported(file, f"{prefix}attention.layer_norm_rms_epsilon", OTHER_FILE)
    values = {
        "dim": dim,
        "n_layers": need("block_count"),
        "n_heads": heads,
        "n_kv_heads": need("attention.head_count_kv"),
        "head_dim": None if width * heads == dim else width,
        "hidden_dim": need("feed_forward_length"),
        "max_seq_len": need("context_length"),
        "vocab_size": file.weights.shape("token_embd.weight")[0],
        "norm_eps": _short(eps),
        "tie_embeddings": "output.weight" not in file.weights.entries,
        "bias": "blk.0.attn_q.bias" in file.weights.entries,
        "qk_norm": architecture == "qwen3",
        **_read_rope(file, own, prefix),
    }
    config = resolve(ModelConfig, [Layer(str(file.path), values)]).config
    return _read_rotary_factors(file, config) if ROTARY_FACTORS in file.weights.entries else config


def _read_rotary_factors(file: GgufFile, config: ModelConfig) -> ModelConfig:
    """The config whose rotary is stretched as in Llama 3.1, which GGUF files say by a divisor for each pair."""
    factors = file.weights.entries[ROTARY_FACTORS].read()
    factor = _short(float(factors.max()))
    try:
        stretched = dataclasses.replace(
            config, rope_scaling="llama3", rope_factor=factor, rope_original_seq_len=LLAMA3_SEQ_LEN
        )
        expected = rotary_frequencies(config)[0] / rotary_frequencies(stretched)[0]
        same = factors.shape == expected.shape and torch.allclose(factors, expected, rtol=1e-4)
    except ConfigError:
        same = False
    if not same:
        what = f"{file.path}: {ROTARY_FACTORS} stretches rotary otherwise than Llama 3.1 does, which is not supported"
        raise UserError(what, OTHER_FILE)
    return stretched


def _read_rope(file: GgufFile, own: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_theta": _short(own.get("rope.freq_base", 10000.0))}
    kind = own.get("rope.scaling.type", "none")
    if kind == "none":
        return values
    if kind not in ("linear", "yarn") or "rope.scaling.factor" not in own:
        raise _unsupported(
            file, f"{prefix}rope.scaling.type", "mmcli stretches rotary by linear or yarn, with a factor"
        )
    values |= {"rope_scaling": kind, "rope_factor": _short(own["rope.scaling.factor"])}
    if kind == "yarn":
        values["rope_original_seq_len"] = own.get("rope.scaling.original_context_length")
    return values


def _short(value: float) -> float:
    """An fp32 number of the metadata as people write it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _unsupported(file: GgufFile, key: str, fix: str) -> UserError:
    if key not in file.fields:
        return UserError(f"{file.path} has no {key}", fix)
    return UserError(f"{file.path}: {key} = {file.fields[key]!r} is not supported", fix)
