"""The device, the precision and the kernels that a training uses, chosen for this machine."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass

import torch

from mmcli.model.device import choose_device


@dataclass(frozen=True)
class Placement:
    """Where and in what precision the model computes. Weights stay fp32; bf16 is autocast."""

    device: torch.device
    precision: str  # "fp32" or "bf16"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def choose_placement(device_name: str, precision: str) -> Placement:
    """The device, and bf16 where it is fast (CUDA GPUs that have it) unless told otherwise."""
    device = choose_device(device_name)
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return Placement(device, precision)


def make_deterministic() -> None:
    """The same numbers in every run on this machine; memory is not filled, which would only cost time."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it by hand
    if torch.cuda.is_available():
        import os

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def can_compile(device: torch.device) -> bool:
    """True if torch.compile has what it needs: a C++ compiler on the CPU, Triton on CUDA."""
    if device.type == "cpu":
        return shutil.which("g++") is not None or shutil.which("clang++") is not None
    if device.type == "cuda":
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return False


def measure_peak_flops(placement: Placement) -> float:
    """FLOP/s of a large matrix product here: the measure that MFU is a share of (the best of several)."""
    device = placement.device
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Randomness of one step (dropout) from the seed, the step and the rank alone, so that resume needs no state."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)
