"""The engine that runs a model with torch.

Shapes: S slots of an engine, B of them in one pass, T new tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from mmcli.errors import UserError
from mmcli.generate.engine import check_copy, check_decode, check_extend, check_prefill, check_truncate, check_verify
from mmcli.model.attention import AttnContext
from mmcli.model.cache import KVCache
from mmcli.model.device import choose_device
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.transformer import Transformer
from mmcli.run import ModelRef
from mmcli.stage import Reporter

P = ParamSpec("P")
R = TypeVar("R")
PREFILL_CHUNK = 512  # tokens of a prompt that run at once: bounds the memory of their activations
IDLE_SHARE = 0.2  # of the busy slots: so many idle ones between them are computed along rather than the caches copied


def _inference(method: Callable[P, R]) -> Callable[P, R]:
    """`torch.inference_mode`, on a CPU without autocast: to cast all weights for a token takes longer than it saves."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode():
            if not torch.is_autocast_enabled("cpu"):
                return method(*args, **kwargs)
            with torch.autocast("cpu", enabled=False):
                return method(*args, **kwargs)

    return run


class TorchEngine:
    """An `Engine` over a `Transformer` and its static key/value buffers."""

    can_verify = True

    def __init__(
        self,
        model: Transformer,
        *,
        slots: int = 1,
        max_len: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        """Take a model as it is: its device and its precision.

        Under autocast on a GPU it computes and keeps its caches in the type of that.

        Args:
            slots: how many sequences are held at a time.
            max_len: tokens of one sequence; None is the longest context the model was made for.
            prefill_chunk: tokens of a prompt that run at once.

        Raises:
            UserError: `max_len` is not positive, or past what the model's positions allow.
        """
        if slots < 1:
            raise UserError(f"slots = {slots} holds no sequence", "give 1 or more")
        if max_len is not None and max_len < 1:
            raise UserError(f"max_len = {max_len} holds no token", "give 1 or more")
        self.model = model.eval()
        weight = next(model.parameters())
        self.device = weight.device
        on_cuda = weight.device.type == "cuda"
        dtype = torch.get_autocast_dtype("cuda") if on_cuda and torch.is_autocast_enabled("cuda") else weight.dtype
        self.cache = KVCache(model.config, slots=slots, max_len=max_len, device=weight.device, dtype=dtype)
        self.vocab_size = model.config.vocab_size
        self.max_len = self.cache.max_len
        self.slots = slots
        self.prefill_chunk = prefill_chunk

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        slots: int = 1,
        max_len: int | None = None,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> TorchEngine:
        """An engine over the model in `folder`.

        Raises:
            UserError: no model there, or no such device.
        """
        return cls(load_model(folder, device=choose_device(device), dtype=dtype), slots=slots, max_len=max_len)

    @_inference
    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.prefill`; long prompts run in chunks, an interrupt keeps the finished ones."""
        check_prefill(self, slot, ids)
        for start in range(0, len(ids), self.prefill_chunk):
            hidden_1TD = self._forward([slot], [ids[start : start + self.prefill_chunk]])
        return _numpy(self.model.head(hidden_1TD[0, -1]))

    @_inference
    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See `Engine.decode`. Few idle slots between the others compute an id too, which never counts."""
        check_decode(self, slots, ids)
        stretch = range(min(slots), max(slots) + 1)
        idle = set(stretch).difference(slots)
        if not 0 < len(idle) <= len(slots) * IDLE_SHARE or any(self.length(slot) == self.max_len for slot in idle):
            return _numpy(self.model.head(self._forward(slots, [[each] for each in ids])[:, -1]))
        id_of = dict(zip(slots, ids, strict=True))
        hidden_B1D = self._forward(stretch, [[id_of.get(slot, 0)] for slot in stretch], counted=slots)
        return _numpy(self.model.head(hidden_B1D[[slot - stretch.start for slot in slots], -1]))

    @_inference
    def extend(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Engine.extend`; what is longer than a chunk is read in chunks before."""
        check_extend(self, slots, ids)
        rows = [list(row) for row in ids]
        for slot, row in zip(slots, rows, strict=True):
            while len(row) > self.prefill_chunk:
                self._forward([slot], [row[: self.prefill_chunk]])
                del row[: self.prefill_chunk]
        counts = [len(row) for row in rows]
        ids_1N = torch.tensor([[id for row in rows for id in row]], dtype=torch.int64, device=self.device)
        hidden_1ND, _ = self.model(ids_1N, AttnContext.for_cache_parts(self.cache, slots, counts))
        self.cache.advance(slots, counts)
        last_S = torch.tensor(counts, device=self.device).cumsum(0) - 1
        return _numpy(self.model.head(hidden_1ND[0, last_S]))

    @_inference
    def verify(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.verify`."""
        check_verify(self, slot, ids)
        return _numpy(self.model.head(self._forward([slot], [ids])[0]))

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""
        return self.cache.length(slot)

    def truncate(self, slot: int, n: int) -> None:
        """Keep the first `n` tokens of the slot."""
        check_truncate(self, slot, n)
        self.cache.truncate(slot, n)

    @_inference
    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        check_copy(self, source, target)
        self.cache.copy(source, target)

    def _forward(
        self, slots: Sequence[int], ids: Sequence[Sequence[int]], counted: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Append as many ids to each of the slots; returns hidden_BTD. None but those `counted` are longer after it."""
        ids_BT = torch.tensor(ids, dtype=torch.int64, device=self.device)
        n_tokens = ids_BT.shape[1]
        hidden_BTD: torch.Tensor
        hidden_BTD, _ = self.model(ids_BT, AttnContext.for_cache(self.cache, slots, n_tokens))
        self.cache.advance(slots if counted is None else counted, n_tokens)
        return hidden_BTD


def open_torch_engine(
    ref: ModelRef,
    *,
    device: str = "auto",
    slots: int = 1,
    max_len: int | None = None,
    threads: int | None = None,
    report: Reporter | None = None,  # nothing is made here that a person should know of
) -> TorchEngine:
    """The torch engine of a model.

    Args:
        threads: of torch, for the whole process; None leaves them.

    Raises:
        UserError: no model there, or no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchEngine.load(ref.path, slots=slots, max_len=max_len, device=device)


def _numpy(logits: torch.Tensor) -> np.ndarray:
    values: np.ndarray = logits.float().cpu().numpy()
    return values
