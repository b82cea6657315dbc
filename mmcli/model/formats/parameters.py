"""Between the tensors of a format and the parameters of a model.

Shapes: H heads, d features of a head, D width.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.count import count_parameters
from mmcli.model.formats.names import EMBEDDING, HEAD, Form, Layout
from mmcli.model.formats.weights import SHOWN, Weights
from mmcli.model.transformer import Transformer

QUERIES_AND_KEYS = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(?:weight|bias)")
OVERSIZE = 4  # a configuration of so many times the file's numbers is refused before a model of it is made


def disk_tensors(state: Mapping[str, Tensor], config: ModelConfig, layout: Layout) -> dict[str, Tensor]:
    """A model's state dict as a format stores it."""
    tensors: dict[str, Tensor] = {}
    for stored in layout.place(state, config):
        parts = to_disk(stored.form, [state[name].detach() for name in stored.memory])
        tensors.update(zip(stored.disk, parts, strict=True))
    return tensors


def build_model(
    weights: Weights,
    config: ModelConfig,
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """A model of `config` with `weights`, which are stored as `layout` defines; in eval mode.

    Args:
        dtype: of its parameters; None: that of the weights.

    Raises:
        UserError: tensors that are missing, unexpected, of another shape or type, by name; a tied head that differs.
    """
    _refuse_oversize(weights, config)
    with torch.device("meta"):
        model = Transformer(config)
    skeleton = model.state_dict()
    weights = _drop_tied_head(weights, config, layout)
    wanted = {name: tuple(each.shape) for name, each in disk_tensors(skeleton, config, layout).items()}
    misfits = describe_misfits(wanted, {name: entry.shape for name, entry in weights.entries.items()})
    if misfits:
        what = f"the tensors of {weights.where} do not match the configuration; {misfits}"
        raise UserError(what, "restore it: the files are of different models, or of a kind that mmcli does not know")
    stored_dtype = weights.dtype()
    target = stored_dtype if dtype is None else dtype
    state: dict[str, Tensor] = {}
    for stored in layout.place(skeleton, config):
        parts = [weights.entries[name].read().to(device, target, copy=True) for name in stored.disk]
        state.update(zip(stored.memory, to_memory(stored.form, parts, len(stored.memory)), strict=True))
    model.load_state_dict({name: each.contiguous() for name, each in state.items()}, assign=True)
    return model.to(device).eval()


def _refuse_oversize(weights: Weights, config: ModelConfig) -> None:
    """Sizes far beyond the file are refused before a model is made, which would take all memory or hours."""
    if config.n_layers > len(weights.entries):
        what = f"{weights.where} holds {len(weights.entries):,} tensors, and describes {config.n_layers:,} layers"
        raise UserError(what, "restore it: the files are of different models, or n_layers in config.json is wrong")
    described = count_parameters(config).total
    held = sum(math.prod(entry.shape) for entry in weights.entries.values())
    if described > OVERSIZE * max(held, 1):
        sizes = ", ".join(f"{name} = {getattr(config, name)}" for name in ("n_layers", "dim", "ffn_dim", "vocab_size"))
        what = f"{weights.where} holds {held:,} numbers, the model that it describes {described:,} ({sizes})"
        raise UserError(what, "restore it: the files are of different models, or a size in config.json is wrong")


def _drop_tied_head(weights: Weights, config: ModelConfig, layout: Layout) -> Weights:
    """The tied matrix may be stored under both names, as long as both are equal."""
    embedding = layout.names.to_disk(EMBEDDING)
    if not config.tie_embeddings or HEAD not in weights.entries or embedding not in weights.entries:
        return weights
    if not torch.equal(weights.entries[embedding].read(), weights.entries[HEAD].read()):
        what = f"{weights.where}: {HEAD} differs from {embedding}, but the two are said to be one (tied)"
        raise UserError(what, "set tie_word_embeddings to false in config.json (and tie_embeddings in its mmcli table)")
    return weights.without([HEAD])


def describe_misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, unexpected or of another shape among the tensors `found`, by name; empty if all fit."""
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    lines = []
    for problem, names in problems.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        if names:
            lines.append(f"{problem}: {', '.join(names[:SHOWN])}{more}")
    return "; ".join(lines)


def to_disk(form: Form, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a `Stored` as they are stored, contiguous."""
    if form == "experts":
        return [each.contiguous() for each in tensors[0].unbind()]
    if form == "joined":
        return [torch.cat([_flip(each) for each in tensors], dim=-1)]
    if form in ("rows", "columns"):
        return [torch.cat(list(tensors), dim=-2 if form == "rows" else -1)]
    return [(_flip(tensors[0]) if form == "transposed" else tensors[0]).contiguous()]


def to_memory(form: Form, tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """The `count` parameters of a `Stored`, from its tensors on disk."""
    if form == "experts":
        return [torch.stack(list(tensors))]
    if form == "joined":
        return [_flip(each).contiguous() for each in tensors[0].chunk(count, dim=-1)]
    if form in ("rows", "columns"):
        return list(tensors[0].chunk(count, dim=-2 if form == "rows" else -1))
    return [_flip(tensors[0]).contiguous() if form == "transposed" else tensors[0]]


def _flip(tensor: Tensor) -> Tensor:
    """A matrix transposed; a bias as it is."""
    return tensor.t() if tensor.dim() == 2 else tensor


def to_halves(weights: Weights, config: ModelConfig) -> Weights:
    """q and k of every layer, whose rotary pairs are adjacent, as rotate-half wants them."""
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    for name in list(weights.entries):
        found = QUERIES_AND_KEYS.fullmatch(name)
        if found:
            weights = weights.changed(name, functools.partial(to_rotate_half, n_heads=heads[found[1]]))
    return weights


def to_neighbours(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A state dict with q and k of every layer ordered for adjacent rotary pairs: the inverse of `to_halves`."""
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    found = {name: QUERIES_AND_KEYS.fullmatch(name) for name in state}
    return {
        name: from_rotate_half(tensor, heads[match[1]]) if (match := found[name]) else tensor
        for name, tensor in state.items()
    }


def from_rotate_half(rows: Tensor, n_heads: int) -> Tensor:
    """The inverse of `to_rotate_half`."""
    halves = rows.reshape(n_heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def to_rotate_half(rows: Tensor, n_heads: int) -> Tensor:
    """Rows [H*d, ...] of q or k with rotary pairs (2i, 2i+1), ordered for the pairs (i, i + d/2) of rotate-half.

    An exact permutation within each head. RoFormer (arXiv:2104.09864), Llama's release and GGUF pair neighbours.
    """
    paired = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
    return paired.transpose(1, 2).reshape(rows.shape)
