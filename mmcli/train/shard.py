"""Weights, gradients and moments split between the ranks (`--shard`): FSDP2, a block of the model at a time.

Each rank holds a part of every parameter, a DTensor (Zhao et al. 2023, arXiv:2304.11277). A block's parts are gathered
for its forward and backward pass, and its gradients are summed where their parts lie. Here is all that knows of parts:
for a tensor that is not split, each function gives the tensor itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmcli.model.transformer import Transformer
from mmcli.ranks import Ranks


def shard(model: nn.Module, device: torch.device) -> None:
    """Split `model`, which is on `device`, between the ranks, in place.

    Gradients become sums over the ranks, as the losses that they are of are shares of a step's.
    """
    if not dist.is_initialized():  # a single process, started alone
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = [*model.model.layers] if isinstance(model, Transformer) else []
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        if device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # Gloo knows no other


def is_sharded(model: nn.Module) -> bool:
    """True after `shard`."""
    return isinstance(model, FSDPModule)


def sync_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass sums the gradients over the ranks: the last one of a step does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def release(model: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; they share memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor that is split as `like` is, from every rank's part: all ranks call it."""
    if not isinstance(like, DTensor):
        return part
    shape, stride = like.shape, like.stride()
    return full(DTensor.from_local(part, like.device_mesh, like.placements, shape=shape, stride=stride))


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor: all ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, split as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def split(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as one that is split as `like` is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> Iterator[None]:
    """While it is entered, by all ranks, rank 0's model and optimizer hold the whole of everything, on the host.

    The others hold their parts. It takes 12 bytes a parameter of rank 0's memory with AdamW.
    """
    if not is_sharded(model):
        yield
        return
    release(model)
    state = dict(optimizer.state)
    wholes: dict[Any, Any] = {}
    places = [
        (module, name, own) for module in model.modules() for name, own in module._parameters.items() if own is not None
    ]
    for module, name, own in places:
        entire = nn.Parameter(_on_host(own), requires_grad=own.requires_grad)
        moments = {key: _on_host(value) for key, value in state.get(own, {}).items()}
        if ranks.is_writer:
            module._parameters[name] = entire
            wholes |= {entire: moments} if moments else {}
    if ranks.is_writer:
        optimizer.state.clear()
        optimizer.state.update(wholes)
    try:
        yield
    finally:
        for module, name, own in places:
            module._parameters[name] = own
        optimizer.state.clear()
        optimizer.state.update(state)


def _on_host(value: Any) -> Any:
    return full(value.detach()).cpu() if isinstance(value, Tensor) else value
