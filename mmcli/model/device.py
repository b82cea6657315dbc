"""The device that a model computes on."""

from __future__ import annotations

import torch

from mmcli.errors import UserError

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}  # at once, for a model 512 wide


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes CUDA, then Apple's MPS, then the CPU.

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
