"""Numbers that became NaN or infinite: found in gradients each step, in weights and moments before a save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mmcli.errors import MmcliError
from mmcli.train.shard import local

SKIPPED_IN_ROW = 10  # so many steps in a row without a finite loss: the training has diverged
SKIPPED_SHARE = 0.01  # of all steps; SKIPPED_IN_ROW are allowed in any case


class Diverged(MmcliError):
    """A training without finite numbers; its last checkpoint is from before."""

    of_every_rank = True


def too_many_skipped(in_row: int, skipped: int, steps: int) -> bool:
    """True where a training of `steps` steps that skipped so many has to end."""
    return in_row >= SKIPPED_IN_ROW or skipped > max(SKIPPED_IN_ROW, SKIPPED_SHARE * steps)


def non_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of a trained parameter that has, or whose moments have, a value that is NaN or infinite.

    Of parameters that are split between ranks, this rank's parts alone are looked at.
    """
    names, flags = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names.append(name)
            flags.append(_finite((parameter, *optimizer.state.get(parameter, {}).values())))
    if not flags:
        return None
    found: list[bool] = torch.stack(flags).tolist()  # one wait for the device
    return next((name for name, finite in zip(names, found, strict=True) if not finite), None)


def _finite(values: Iterable[object]) -> Tensor:
    """A flag on the device of the first value: all of them are finite."""
    each = list(_flags(values))
    return torch.stack([flag.to(each[0].device) for flag in each]).all()


def _flags(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield torch.isfinite(local(value.detach())).all()
