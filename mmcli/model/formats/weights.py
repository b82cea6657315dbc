"""Tensors of a file by name, read one at a time, and a model made of them.

Shapes: H heads, d features of a head, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import SHOWN, describe_misfits, disk_tensors
from mmcli.model.formats.hf_names import layout, to_memory
from mmcli.model.transformer import Transformer

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SAFETENSORS_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: a type that is no plain float
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model's files."""

    where: str  # the file or folder, as errors name it
    entries: dict[str, Entry]

    def renamed(self, rename: Callable[[str], str]) -> Weights:
        return Weights(self.where, {rename(name): entry for name, entry in self.entries.items()})

    def without(self, names: Iterable[str]) -> Weights:
        dropped = set(names)
        return Weights(self.where, {name: entry for name, entry in self.entries.items() if name not in dropped})

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> Weights:
        """With one tensor put through `change`, which keeps its shape and type."""
        entry = self.entries[name]
        return Weights(
            self.where, {**self.entries, name: dataclasses.replace(entry, read=lambda: change(entry.read()))}
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UserError if there is no such tensor."""
        if name not in self.entries:
            held = ", ".join(list(self.entries)[:SHOWN]) or "no tensor"
            raise UserError(f"{self.where} has no {name} (it holds {held}, ...)", "give the weights of a whole model")
        return self.entries[name].shape

    def dtype(self) -> torch.dtype:
        """The type that all tensors have; fp32, which holds each of them exactly, where they differ.

        Raises:
            UserError: a tensor that is no fp32, bf16 or fp16, by name.
        """
        for name, entry in self.entries.items():
            if entry.dtype is None:
                what = f"{self.where}: {name} is not fp32, bf16 or fp16"
                raise UserError(what, "give the weights before they were quantized, or a GGUF file")
        found = {entry.dtype for entry in self.entries.values() if entry.dtype is not None}
        return found.pop() if len(found) == 1 else torch.float32


def read_safetensors(where: Path, paths: Iterable[Path]) -> Weights:
    """The tensors of one or more safetensors files.

    Raises:
        UserError: a file is missing or damaged.
    """
    entries: dict[str, Entry] = {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  # a handle, not a dict
                entries[name] = _lazy(file, name)
        except FileNotFoundError:
            raise UserError(f"{where} has no {path.name}", "fetch the folder again: a part of it is missing") from None
        except SafetensorError as error:
            what = f"{path} is damaged or no safetensors file: {error}"
            raise UserError(what, "fetch it again from where the model came from") from None
    return Weights(str(where), entries)


def _lazy(file: Any, name: str) -> Entry:
    part = file.get_slice(name)
    return Entry(tuple(part.get_shape()), SAFETENSORS_TYPES.get(part.get_dtype()), lambda: file.get_tensor(name))


def read_pickled(where: Path, paths: Iterable[Path]) -> Weights:
    """The tensors of files of `torch.save(state_dict)`. Nothing but tensors is unpickled: no code of the file runs.

    Raises:
        UserError: a file is missing or damaged, or holds anything but tensors by name.
    """
    entries: dict[str, Entry] = {}
    for path in paths:
        for name, tensor in _unpickle(path).items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                what = f"{path}: its entry {name!r} is no tensor but {type(tensor).__name__}"
                raise UserError(what, "give the bare weights: torch.save(model.state_dict(), ...)")
            entries[name] = _held(tensor)
    return Weights(str(where), entries)


def _held(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), tensor.dtype if tensor.dtype in FLOATS else None, lambda: tensor)


def _unpickle(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", "fetch the model again: a part of it is missing")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].strip()
        what = f"{path} holds more than tensors, or is damaged: {reason}"
        fix = "give the bare weights: torch.save(model.state_dict(), ...); mmcli runs no code in files"
        raise UserError(what, fix) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        what = f"{path} is damaged or no file of torch.save: {str(error).splitlines()[0] if str(error) else error!r}"
        raise UserError(what, "fetch it again from where the model came from") from None
    if not isinstance(loaded, dict):
        what = f"{path} holds {type(loaded).__name__}, no state dict"
        raise UserError(what, "give the bare weights: torch.save(model.state_dict(), ...)")
    return loaded


def read_index(index: Path) -> list[Path]:
    """The shards that a `*.index.json` names.

    Raises:
        UserError: it is not such an index.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is no index of weights", "fetch the folder again") from None
    return [index.parent / name for name in names]


def to_halves(weights: Weights, config: ModelConfig) -> Weights:
    """q and k of every layer, whose rotary pairs lie side by side, as rotate-half wants them."""
    for layer, part in itertools.product(range(config.n_layers), ("weight", "bias")):
        for projection, heads in (("q", config.n_heads), ("k", config.n_kv_heads)):
            name = f"model.layers.{layer}.self_attn.{projection}_proj.{part}"
            if name in weights.entries:  # what is missing is named when the model is built
                weights = weights.changed(name, functools.partial(to_rotate_half, n_heads=heads))
    return weights


def to_rotate_half(rows: Tensor, n_heads: int) -> Tensor:
    """Rows [H*d, ...] of q or k with rotary pairs (2i, 2i+1), ordered for the pairs (i, i + d/2) of rotate-half.

    An exact permutation within each head. RoFormer (arXiv:2104.09864), Llama's release and GGUF pair neighbours.
    """
    paired = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
    return paired.transpose(1, 2).reshape(rows.shape)


def build_model(weights: Weights, config: ModelConfig, model_type: str) -> Transformer:
    """A model of `config` with `weights`, which carry the names of the family `model_type`, in their own type.

    Raises:
        UserError: tensors that are missing, unexpected, of another shape or type, by name; a tied head that differs.
    """
    with torch.device("meta"):
        model = Transformer(config)
    skeleton = model.state_dict()
    weights = _drop_tied_head(weights, config, model_type)
    wanted = {name: tuple(each.shape) for name, each in disk_tensors(skeleton, config, model_type).items()}
    misfits = describe_misfits(wanted, {name: entry.shape for name, entry in weights.entries.items()})
    if misfits:
        what = f"the tensors of {weights.where} do not fit the model that it describes; {misfits}"
        raise UserError(what, "the model has parts that mmcli does not know, or its files are of different models")
    dtype = weights.dtype()
    state: dict[str, Tensor] = {}
    for stored in layout(skeleton, config, model_type):
        parts = [weights.entries[name].read().to(dtype, copy=True) for name in stored.disk]
        state.update(zip(stored.memory, to_memory(stored.form, parts), strict=True))
    model.load_state_dict({name: each.contiguous() for name, each in state.items()}, assign=True)
    return model.to("cpu").eval()


def _drop_tied_head(weights: Weights, config: ModelConfig, model_type: str) -> Weights:
    """The tied matrix may lie there under both names, as long as both are the same."""
    embedding = layout([EMBEDDING], config, model_type)[0].disk[0]
    if not config.tie_embeddings or HEAD not in weights.entries or embedding not in weights.entries:
        return weights
    if not torch.equal(weights.entries[embedding].read(), weights.entries[HEAD].read()):
        what = f"{weights.where}: {HEAD} differs from {embedding}, but the two are said to be one (tied)"
        raise UserError(what, "set tie_word_embeddings to false in config.json")
    return weights.without([HEAD])
