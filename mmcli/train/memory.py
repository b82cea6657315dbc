"""Out of memory, as the many places that allocate say it."""

from __future__ import annotations

import torch

from mmcli.generate.bench import peak_memory_bytes

PHRASES = ("can't allocate memory", "DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """True of an error that a smaller micro-batch may avoid."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def free_cached(device: torch.device) -> None:
    """Give back what torch keeps of the device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int | None:
    """The most bytes held so far: of the GPU on CUDA, else of this process; None where the system does not say."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
