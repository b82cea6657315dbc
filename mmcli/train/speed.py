"""The rate of matrix products on a device in fp32 and bf16: what `--precision auto` goes by."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

import torch

from mmcli.model.device import MICRO_BATCH_TOKENS

BF16_PAYS = 1.3  # times the fp32 rate: about a tenth less time a step, as a third of it is no matrix product
FIRST_ROWS = 32  # of a trial; emulated bf16 takes many times as long as fp32 there, and is not measured further
HOPELESS = 4.0
REPEATS = 4
WIDTH = 512

Rates = Callable[[torch.device, int], Mapping[str, float]]


def product_rates(device: torch.device, width: int = WIDTH) -> Mapping[str, float]:
    """FLOP/s of a product as in a hidden layer, [tokens of a micro-batch, width] x [width, width], in fp32 and bf16.

    The best of several, the two in turns, so that a busy moment strikes both; measured once a process, well under a
    second. A precision that the device refuses is left out.
    """
    return _measured(device, width)


@functools.cache
def _measured(device: torch.device, width: int) -> Mapping[str, float]:
    trial = {name: _Product(device, dtype, FIRST_ROWS, width) for name, dtype in _usable(device).items()}
    for _ in range(2):
        for each in trial.values():
            each.measure()
    slow = {name for name, each in trial.items() if each.seconds > HOPELESS * trial["fp32"].seconds}
    rows = MICRO_BATCH_TOKENS.get(device.type, 1024)
    whole = {name: _Product(device, each.dtype, rows, width) for name, each in trial.items() if name not in slow}
    for _ in range(REPEATS):
        for each in whole.values():
            each.measure()
    return {name: (trial if name in slow else whole)[name].rate for name in trial}


def prefers_bf16(rates: Mapping[str, float]) -> bool:
    """True where training in bf16 is enough quicker than in fp32 to be worth its rounding."""
    return rates.get("bf16", 0.0) >= BF16_PAYS * rates["fp32"]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _usable(device: torch.device) -> dict[str, torch.dtype]:
    usable = {"fp32": torch.float32}
    try:
        ones = torch.ones(FIRST_ROWS, FIRST_ROWS, device=device, dtype=torch.bfloat16)
        ones @ ones
        synchronize(device)
    except (RuntimeError, TypeError):  # older macOS, for one, has no bf16 on MPS
        return usable
    return {**usable, "bf16": torch.bfloat16}


class _Product:
    """A matrix product that is measured again and again, the first time only to warm up."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rows: int, width: int) -> None:
        self.dtype = dtype
        self._device = device
        self._a = torch.full((rows, width), 0.5, device=device, dtype=dtype)
        self._b = torch.full((width, width), 0.5, device=device, dtype=dtype)
        self._warm = False
        self.seconds = float("inf")

    @property
    def rate(self) -> float:
        """FLOP/s of the quickest."""
        return 2.0 * self._a.shape[0] * self._a.shape[1] * self._b.shape[1] / self.seconds

    def measure(self) -> None:
        """Do it once more."""
        for _ in range(1 if self._warm else 2):
            started = time.perf_counter()
            self._a @ self._b
            synchronize(self._device)
            taken = time.perf_counter() - started
        self._warm = True
        self.seconds = min(self.seconds, taken)
