"""The key/value cache: static buffers with slots of different length.

Shapes: S slots, K key/value heads, M most tokens of a slot, d features of a head, B chosen slots, T new tokens in each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model.config import ModelConfig


class KVCache:
    """Keys and values of every layer, [S, K, M, d] each, and the length of each slot."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int = 1,
        max_len: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Buffers for `slots` sequences of at most `max_len` tokens (None: the model's longest context).

        Raises:
            UserError: `max_len` is past a learned position table, which has no place for more, or the buffers are
                larger than the memory.
        """
        self.max_len = max_len if max_len is not None else config.max_seq_len
        if config.position == "learned" and self.max_len > config.max_seq_len:
            what = f"max_len = {self.max_len} is more than the {config.max_seq_len} positions that the model has"
            raise UserError(what, f"give {config.max_seq_len} or less")
        shape = (slots, config.n_kv_heads, self.max_len, config.d_head)
        self.device = torch.device(device)
        needed = 2 * config.n_layers * math.prod(shape) * dtype.itemsize
        if self.device.type == "cpu" and needed > (memory := _memory()):
            what = f"keys and values of {slots:,} x {self.max_len:,} tokens take {needed:,} bytes, more than all memory"
            raise UserError(f"{what} ({memory:,.0f})", "lower max_position_embeddings in config.json, or give max_len")
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.lengths = np.zeros(slots, dtype=np.int64)

    @property
    def slots(self) -> int:
        """The number of sequences that fit."""
        return len(self.lengths)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return int(self.lengths[slot])

    def view(self, slots: Sequence[int], n_tokens: int) -> CacheView:
        """The room for `n_tokens` new tokens in each of `slots`.

        Raises:
            UserError: a slot has no room for them.
        """
        starts = self.lengths[list(slots)]
        end = int(starts.max()) + n_tokens
        if end > self.max_len:
            what = f"{n_tokens} tokens after {int(starts.max())} are more than the {self.max_len} a sequence may have"
            raise UserError(what, "shorten the text, or give a larger max_len")
        positions = starts[:, None] + np.arange(n_tokens)
        return CacheView(self, tuple(slots), starts, end, torch.from_numpy(positions).to(self.device))

    def advance(self, slots: Sequence[int], n_tokens: int | Sequence[int]) -> None:
        """Make `n_tokens` written tokens of each of `slots` count, or of each as many as are given for it."""
        self.lengths[list(slots)] += n_tokens

    def truncate(self, slot: int, n: int) -> None:
        """Forget all but the first `n` tokens of a slot."""
        if not 0 <= n <= self.length(slot):
            raise ValueError(f"slot {slot} holds {self.length(slot)} tokens, not {n}")
        self.lengths[slot] = n

    def copy(self, source: int, target: int) -> None:
        """Make slot `target` hold what `source` holds."""
        n = self.length(source)
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :n] = buffer[source, :, :n]
        self.lengths[target] = n


def _memory() -> float:
    """Bytes of memory that the machine has; infinity where that cannot be known."""
    if not hasattr(os, "sysconf"):
        return math.inf
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return math.inf


@dataclass(frozen=True)
class CacheView:
    """The chosen slots during one forward pass: the places of their new tokens, and the tokens they attend to."""

    cache: KVCache
    slots: tuple[int, ...]
    starts: np.ndarray  # [B] tokens held before
    end: int  # tokens held after, in the longest
    positions_BT: Tensor

    @property
    def sees_all(self) -> bool:
        """One new token in each slot, all of one length: no mask is needed."""
        return self.positions_BT.shape[1] == 1 and bool((self.starts == self.starts[0]).all())

    def update(self, layer: int, k_BTKd: Tensor, v_BTKd: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of a layer; returns all of the chosen slots', [B, end, K, d] each."""
        return self._write(self.cache.keys[layer], k_BTKd), self._write(self.cache.values[layer], v_BTKd)

    def _write(self, buffer_SKMd: Tensor, new_BTKd: Tensor) -> Tensor:
        first, count = self.slots[0], len(self.slots)
        if count == 1:
            start = int(self.starts[0])
            buffer_SKMd[first, :, start : self.end] = new_BTKd[0].transpose(0, 1)
        else:
            new_Nd = new_BTKd.flatten(0, 2).to(buffer_SKMd.dtype)
            buffer_SKMd.view(-1, buffer_SKMd.shape[3]).index_copy_(0, self._places_N, new_Nd)
        held_SKJd = buffer_SKMd[:, :, : self.end]
        if self.slots == tuple(range(first, first + count)):
            held = held_SKJd[first : first + count]  # neighbours: no copy
        else:
            held = held_SKJd.index_select(0, self._slots_B)
        return held.transpose(1, 2).to(new_BTKd.dtype)

    @cached_property
    def _slots_B(self) -> Tensor:
        return torch.tensor(self.slots, device=self.positions_BT.device)

    @cached_property
    def _places_N(self) -> Tensor:
        """[B * T * K] int64, where the new tokens lie in a buffer whose slots, heads and tokens are one dimension."""
        _, n_heads, max_len, _ = self.cache.keys[0].shape
        head_K = torch.arange(n_heads, device=self.positions_BT.device)
        slots_B11 = self._slots_B[:, None, None]
        places_BTK = (slots_B11 * n_heads + head_K) * max_len + self.positions_BT[:, :, None]
        return places_BTK.flatten()
