"""Device, precision and determinism of a training."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import time
from dataclasses import dataclass

import torch

from mmcli.machine import cpu_name
from mmcli.model.device import choose_device
from mmcli.ranks import find_place
from mmcli.stage import StageContext
from mmcli.train.ranks import rank_device
from mmcli.train.speed import WIDTH, Rates, prefers_bf16, product_rates, synchronize

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@dataclass(frozen=True)
class Accelerator:
    """Device and precision of a model's computations. Weights stay fp32; bf16 is autocast."""

    device: torch.device
    precision: str  # "fp32" or "bf16"

    @property
    def pins_memory(self) -> bool:
        """True where host batches in page-locked memory reach the device sooner."""
        return self.device.type == "cuda"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def training_device(name: str) -> torch.device:
    """The device `name` ("auto": the best) of this rank.

    Raises:
        UserError: there is no such device here.
    """
    return rank_device(choose_device(name), find_place())


def choose_accelerator(
    device_name: str,
    precision: str,
    context: StageContext | None = None,
    *,
    width: int = WIDTH,
    rates: Rates = product_rates,
) -> Accelerator:
    """The device and the precision; "auto" is bf16 where its matrix products are measured to be quick, else fp32.

    Args:
        context: of the run that keeps the choice; when it is resumed, nothing is measured.
        width: features of a hidden layer, for the measurement.
        rates: measures the FLOP/s of a product in "fp32" and "bf16".

    Raises:
        UserError: there is no such device here.
    """
    device = training_device(device_name)

    def measure() -> str:
        measured = rates(device, width)
        if not prefers_bf16(measured):
            return "fp32"
        if context is not None:
            times = measured["bf16"] / measured["fp32"]
            context.report.note(f"precision: bf16, whose matrix products are {times:.1f} times as quick here")
        return "bf16"

    if precision == "auto":
        precision = str(context.run.choose("precision", measure)) if context is not None else measure()
    return Accelerator(device, precision)


def describe_device(device: torch.device) -> str:
    """The name of the hardware behind a device, as its system gives it: `cpu AMD EPYC 7763 64-Core Processor`."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {cpu_name()}".strip()


def make_deterministic(device: torch.device) -> None:
    """Use deterministic algorithms: the same numbers in every run on this machine (memory is left unfilled: faster).

    Not on MPS, which has none for what a training needs (adding to rows by index) and raises there.
    """
    torch.use_deterministic_algorithms(device.type != "mps")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it by hand
    if torch.cuda.is_available():
        import os

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, so that a training step does not fetch its large blocks from the kernel anew.

    Blocks over 32 MiB would be mapped and their pages faulted in at every use, a quarter of the time of a step.
    Elsewhere than on Linux with glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def can_compile(device: torch.device) -> bool:
    """True if torch.compile has what it needs: a C++ compiler on the CPU, Triton on CUDA."""
    if device.type == "cpu":
        return shutil.which("g++") is not None or shutil.which("clang++") is not None
    if device.type == "cuda":
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return False


def measure_peak_flops(accelerator: Accelerator) -> float:
    """FLOP/s of a large matrix product on this machine, the best of several: the denominator of the MFU."""
    device = accelerator.device
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if accelerator.precision == "bf16" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        a @ a
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Randomness of one step (dropout) from the seed, the step and the rank alone, so that resume needs no state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4099 + rank) % 2**64)
