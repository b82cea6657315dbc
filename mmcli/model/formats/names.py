"""Names of tensors: a format's own and ours, which are Llama's, as tables that are read in both directions. No torch.

In memory every model carries Llama's names and experts are stacked, [E, out, in]. On disk each expert is a tensor of
its own, or they are stacked there too; GPT-2 keeps its matrices transposed and q, k, v joined.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmcli.model.config import ModelConfig

Form = Literal["same", "transposed", "experts", "joined", "rows", "columns"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STACKED = re.compile(r"(.*\.experts)\.(gate_proj|up_proj|down_proj)$")
SHARED = re.compile(r"(.*\.shared_experts)\.\d+\.(gate_proj|up_proj|down_proj)\.weight$")
QUERIES = re.compile(r"(.*\.)[qkv](_proj\.(?:weight|bias))$")


@dataclass(frozen=True)
class NameTable:
    """Modules by (our name, the format's name); {} is the number of a layer or an expert. Others have the same name."""

    pairs: tuple[tuple[str, str], ...]

    def to_disk(self, name: str) -> str:
        """The format's name of one of our tensors."""
        return _rename(name, self.pairs)

    def to_memory(self, name: str) -> str:
        """Our name of one of the format's tensors."""
        return _rename(name, tuple((theirs, ours) for ours, theirs in self.pairs))


def _rename(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        found = _pattern(old).match(name)
        if found:
            return new.format(*found.groups()) + name[found.end() :]
    return name


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)") + r"(?=\.)")


@dataclass(frozen=True)
class Layout:
    """How a format stores parameters: their names, and which of them are one tensor.

    `conv1d`: matrices transposed, q, k and v joined (GPT-2). `experts`: a tensor for each expert; or the routed ones
    stacked, [E, out, in], and the shared ones as one FFN (GGUF); or that with gate and up in one tensor
    (GraniteMoeShared).
    """

    names: NameTable
    conv1d: bool = False
    experts: Literal["separate", "stacked", "fused"] = "separate"

    def place(self, names: Iterable[str], config: ModelConfig) -> list[Stored]:
        """The tensors on disk for each parameter of `names`."""
        groups = ((name, self._stored_with(name, config)) for name in names)
        return [self._stored(members, config) for name, members in groups if members[0] == name]

    def _stored_with(self, name: str, config: ModelConfig) -> tuple[str, ...]:
        """The parameters that one tensor holds, `name` among them, in their order there."""
        queries = QUERIES.match(name) if self.conv1d else None
        if queries:
            return tuple(f"{queries[1]}{each}{queries[2]}" for each in "qkv")
        stacked = STACKED.match(name)
        found = stacked or SHARED.match(name)
        if self.experts == "separate" or not found:
            return (name,)
        prefix, projection = found.groups()
        fused = self.experts == "fused" and projection != "down_proj"
        projections = ("gate_proj", "up_proj") if fused else (projection,)
        if stacked:
            return tuple(f"{prefix}.{each}" for each in projections)
        return tuple(f"{prefix}.{expert}.{each}.weight" for each in projections for expert in range(config.n_shared))

    def _stored(self, members: tuple[str, ...], config: ModelConfig) -> Stored:
        name = members[0]
        stacked = STACKED.match(name)
        if stacked and self.experts == "separate":
            prefix, projection = stacked.groups()
            single = (f"{prefix}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts))
            return Stored(members, tuple(self.names.to_disk(each) for each in single), "experts")
        disk = (self.names.to_disk(f"{name}.weight" if stacked else name),)
        if self.conv1d:
            form: Form = "transposed" if name.endswith("_proj.weight") else "same"
            return Stored(members, disk, "joined" if len(members) > 1 else form)
        if len(members) == 1:
            return Stored(members, disk, "same")
        return Stored(members, disk, "columns" if ".down_proj." in name else "rows")


@dataclass(frozen=True)
class Stored:
    """Parameters in memory and the tensors on disk that hold them: one of each, or one to many either way."""

    memory: tuple[str, ...]
    disk: tuple[str, ...]
    form: Form
