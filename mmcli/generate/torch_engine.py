"""The engine that runs a model with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmcli.errors import UserError
from mmcli.generate.engine import check_copy, check_decode, check_prefill, check_truncate
from mmcli.model import cache as kv
from mmcli.model.device import choose_device
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.transformer import Transformer


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
        return cls(load_model(folder, device=choose_device(device), dtype=dtype), slots=slots, max_len=max_len)

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
