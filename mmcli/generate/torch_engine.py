"""The engine that runs a model with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmcli.errors import UserError
from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate
from mmcli.model import cache as kv
from mmcli.model.checkpoint import load_model
from mmcli.model.transformer import Transformer


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, then Apple's MPS, then the CPU.

    Raises:
        UserError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'there is no device "{name}"', "give auto, cpu, cuda, cuda:0 or mps") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'device "{name}" cannot be used here: {reason}', "give auto or cpu") from None
    return device


class TorchEngine:
    """An `Engine` over a `Transformer` and its static key/value buffers."""

    def __init__(self, model: Transformer, *, slots: int = 1, max_len: int | None = None) -> None:
        """Take a model as it is: its device and its precision.

        Args:
            slots: how many sequences are held at a time.
            max_len: tokens of one sequence; None is the longest context the model was made for.

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
        self.cache = kv.KVCache(model.config, slots=slots, max_len=max_len, device=weight.device, dtype=weight.dtype)
        self.vocab_size = model.config.vocab_size
        self.max_len = self.cache.max_len
        self.slots = slots

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
        return cls(load_model(folder, device=pick_device(device), dtype=dtype), slots=slots, max_len=max_len)

    @torch.inference_mode()
    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        """See `Engine.prefill`; long prompts run in chunks, an interrupt keeps the finished ones."""
        check_prefill(self, slot, ids)
        return _numpy(kv.prefill(self.model, self.cache, slot, ids))

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See `Engine.decode`."""
        check_decode(self, slots, ids)
        return _numpy(kv.decode(self.model, self.cache, slots, ids))

    def length(self, slot: int) -> int:
        """Tokens in the slot's cache."""
        return self.cache.length(slot)

    def truncate(self, slot: int, n: int) -> None:
        """Keep the first `n` tokens of the slot."""
        check_truncate(self, slot, n)
        self.cache.truncate(slot, n)

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        check_copy(self, source, target)
        self.cache.copy(source, target)


def _numpy(logits: torch.Tensor) -> np.ndarray:
    values: np.ndarray = logits.float().cpu().numpy()
    return values
