"""Names of tensors: a format's own and ours, which are Llama's, as tables that are read in both directions. No torch.

In memory every model carries Llama's names and experts are stacked, [E, out, in]. On disk each expert is a tensor of
its own, and GPT-2 keeps its matrices transposed and q, k, v joined.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmcli.model.config import ModelConfig

Form = Literal["same", "transposed", "experts", "joined"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STACKED = re.compile(r"(.*\.experts)\.(gate_proj|up_proj|down_proj)$")


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
    """How a format stores parameters: their names, and whether as GPT-2 does (`conv1d`: transposed, q, k, v joined)."""

    names: NameTable
    conv1d: bool = False

    def place(self, names: Iterable[str], config: ModelConfig) -> list[Stored]:
        """The tensors on disk for each parameter of `names`."""
        return [self._stored(name, config) for name in names if not self._is_joined_to_q(name)]

    def _is_joined_to_q(self, name: str) -> bool:
        return self.conv1d and (".k_proj." in name or ".v_proj." in name)

    def _stored(self, name: str, config: ModelConfig) -> Stored:
        stacked = STACKED.match(name)
        if stacked:
            prefix, projection = stacked.groups()
            single = (f"{prefix}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts))
            return Stored((name,), tuple(self.names.to_disk(each) for each in single), "experts")
        disk = (self.names.to_disk(name),)
        if self.conv1d and ".q_proj." in name:
            return Stored((name, name.replace(".q_", ".k_"), name.replace(".q_", ".v_")), disk, "joined")
        return Stored((name,), disk, "transposed" if self.conv1d and name.endswith("_proj.weight") else "same")


@dataclass(frozen=True)
class Stored:
    """Parameters in memory and the tensors on disk that hold them: one of each, or one to many either way."""

    memory: tuple[str, ...]
    disk: tuple[str, ...]
    form: Form
