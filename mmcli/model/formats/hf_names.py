"""How parameters lie in a file: our names and forms, and those of each Hugging Face family.

In memory every model carries Llama's names and experts are stacked, [E, out, in]. On disk each expert is a tensor of
its own, GPT-2 keeps its matrices transposed and q, k, v joined, and GPT-2, Phi and Mixtral have names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmcli.model.config import ModelConfig

Form = Literal["same", "transposed", "experts", "joined"]

RENAMES: Mapping[str, Sequence[tuple[str, str]]] = {
    "gpt2": (
        ("model.embed_tokens.", "transformer.wte."),
        ("model.embed_positions.", "transformer.wpe."),
        ("model.layers.", "transformer.h."),
        ("model.norm.", "transformer.ln_f."),
        (".input_layernorm.", ".ln_1."),
        (".post_attention_layernorm.", ".ln_2."),
        (".self_attn.o_proj.", ".attn.c_proj."),
        (".mlp.up_proj.", ".mlp.c_fc."),
        (".mlp.down_proj.", ".mlp.c_proj."),
        (".self_attn.q_proj.", ".attn.c_attn."),  # with k and v joined to it
    ),
    "phi": (
        ("model.norm.", "model.final_layernorm."),
        (".self_attn.o_proj.", ".self_attn.dense."),
        (".mlp.up_proj.", ".mlp.fc1."),
        (".mlp.down_proj.", ".mlp.fc2."),
    ),
    "mixtral": (
        (".mlp.", ".block_sparse_moe."),
        (".gate_proj.", ".w1."),
        (".down_proj.", ".w2."),
        (".up_proj.", ".w3."),
    ),
}
STACKED = re.compile(r"(.*\.experts)\.(gate_proj|up_proj|down_proj)$")


@dataclass(frozen=True)
class Stored:
    """Parameters in memory and the tensors on disk that hold them: one of each, or one to many either way."""

    memory: tuple[str, ...]
    disk: tuple[str, ...]
    form: Form


def layout(names: Iterable[str], config: ModelConfig, model_type: str) -> list[Stored]:
    """Where each parameter of `names` lies in a file of the family `model_type`."""
    return [_stored(name, config, model_type) for name in names if not _joined_to_q(name, model_type)]


def _joined_to_q(name: str, model_type: str) -> bool:
    return model_type == "gpt2" and (".k_proj." in name or ".v_proj." in name)


def _stored(name: str, config: ModelConfig, model_type: str) -> Stored:
    stacked = STACKED.match(name)
    if stacked:
        prefix, projection = stacked.groups()
        single = (f"{prefix}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts))
        return Stored((name,), tuple(_rename(each, model_type) for each in single), "experts")
    disk = (_rename(name, model_type),)
    if model_type == "gpt2" and ".q_proj." in name:
        return Stored((name, name.replace(".q_", ".k_"), name.replace(".q_", ".v_")), disk, "joined")
    is_matrix = name.endswith("_proj.weight")
    return Stored((name,), disk, "transposed" if model_type == "gpt2" and is_matrix else "same")


def _rename(name: str, model_type: str) -> str:
    for ours, theirs in RENAMES.get(model_type, ()):
        name = name.replace(ours, theirs)
    return name


def to_disk(form: Form, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a `Stored` as they lie on disk, contiguous."""
    if form == "experts":
        return [each.contiguous() for each in tensors[0].unbind()]
    if form == "joined":
        return [torch.cat([_flip(each) for each in tensors], dim=-1)]
    return [(_flip(tensors[0]) if form == "transposed" else tensors[0]).contiguous()]


def to_memory(form: Form, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parameters of a `Stored`, from its tensors on disk."""
    if form == "experts":
        return [torch.stack(list(tensors))]
    if form == "joined":
        return [_flip(each).contiguous() for each in tensors[0].chunk(3, dim=-1)]
    return [_flip(tensors[0]).contiguous() if form == "transposed" else tensors[0]]


def _flip(tensor: Tensor) -> Tensor:
    """A matrix transposed; a bias as it is."""
    return tensor.t() if tensor.dim() == 2 else tensor
