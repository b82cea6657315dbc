"""Choice of the torch device, and what is moved there."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcli.errors import UserError

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}  # at once, for a model 512 wide


def choose_device(name: str = "auto") -> torch.device:
    """The torch device `name`; "auto" prefers CUDA, then MPS (Apple), then the CPU.

    Raises:
        UserError: torch does not know the device, or it is not available.
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
        raise UserError(f'device "{name}" cannot be used here: {reason}', "use --device auto or --device cpu") from None
    return device


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; only a copy to CUDA is not waited for, from page-locked memory.

    Elsewhere the memory that it is read from may be free again by then (MPS, up to torch 2.12).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
