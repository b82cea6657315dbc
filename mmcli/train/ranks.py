"""Several processes that train one model: what they tell each other, over torch.distributed.

Gloo carries what the CPU holds, NCCL what CUDA devices hold. Values are small JSON documents; gradients are summed in
flat buckets after the last micro-batch of a step, so that every rank has the same sum and takes the same update.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmcli.errors import MmcliError, UserError
from mmcli.ranks import Place, RankLost, Ranks
from mmcli.run import RESOLVED, Run
from mmcli.threads import allowed_cores, cores_among

T = TypeVar("T")
MEETING = timedelta(minutes=5)  # all processes have to be there by then
WAITING = timedelta(days=7)  # for a rank that is at work; one that died is noticed at once
FRAME = 1024  # bytes of a message that goes in one round
LENGTH = 8  # of them, that hold its length
END = b'"end"'  # the message of one that leaves
BUCKET_BYTES = 1 << 25
BROKEN = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Socket Timeout", "recvValue")


class ProcessRanks(Ranks):
    """The ranks of an initialized process group."""

    def __init__(self, place: Place) -> None:
        self.rank, self.world, self.local_world = place.rank, place.world, place.local_world
        self._told = False

    def gather(self, value: T) -> list[T]:
        data = json.dumps(value).encode()
        frames = self._all_gather(data, FRAME)
        if END in [content for _, content in frames] and data != END:
            raise RankLost("another process of the training has ended", "see what that one said; then: mmcli resume")
        longest = max(length for length, _ in frames) + LENGTH
        if longest > FRAME:
            frames = self._all_gather(data, longest)
        return [json.loads(content) for _, content in frames]

    def _all_gather(self, data: bytes, size: int) -> list[tuple[int, bytes]]:
        """(length, content) of every rank's message, the content cut to what a frame of `size` bytes holds."""
        frame = (len(data).to_bytes(LENGTH, "big") + data)[:size].ljust(size, b"\0")
        mine = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        with lost_as_error():
            dist.all_gather(found, mine)
        frames = [bytes(each.numpy()) for each in found]
        lengths = [int.from_bytes(each[:LENGTH], "big") for each in frames]
        return [(length, each[LENGTH : LENGTH + length]) for length, each in zip(lengths, frames, strict=True)]

    def leave(self) -> None:
        """End the group, together with all others: rank 0 keeps the meeting place until then."""
        self.gather(json.loads(END))
        dist.destroy_process_group()

    def broadcast(self, value: T) -> T:
        return self.gather(value if self.is_writer else None)[0]  # type: ignore[return-value]  # that of rank 0

    def choose(self, run: Run, key: str, choice: Callable[[], Any]) -> Any:
        known = self.broadcast(run.read_config(RESOLVED).get(key) if self.is_writer else None)
        if known is not None:
            return known
        chosen = self.broadcast(choice())
        return run.choose(key, lambda: chosen)

    def prepared(self, message: Any) -> None:
        if self.is_writer and not self._told:
            self._told = True
            self.broadcast(message)

    def order(self, work: Any) -> bool:
        if not self.is_writer or self._told:
            return False
        self.broadcast(work)
        return True

    def copy_weights(self, parameters: Iterable[Tensor]) -> None:
        with lost_as_error(), torch.no_grad():
            for each in parameters:
                dist.broadcast(each, 0)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        trained = [each for each in parameters if each.requires_grad]
        present = torch.tensor([each.grad is not None for each in trained], dtype=torch.int32)
        with lost_as_error():
            dist.all_reduce(present)
        held = [each for each, count in zip(trained, present.tolist(), strict=True) if count]
        for each in held:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        for bucket in _buckets([each.grad for each in held if each.grad is not None]):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            with lost_as_error():
                dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type and device together, `BUCKET_BYTES` at most unless one alone has more."""
    bucket: list[Tensor] = []
    size = 0
    for each in gradients:
        own = each.numel() * each.element_size()
        if bucket and (size + own > BUCKET_BYTES or (each.dtype, each.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(each)
        size += own
    if bucket:
        yield bucket


@contextlib.contextmanager
def lost_as_error() -> Iterator[None]:
    """What torch raises when another process is gone becomes `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in BROKEN):
            raise
        what = "another process of the training ended, or cannot be reached"
        raise RankLost(what, "see what that one said; then resume: mmcli resume") from error


@contextlib.contextmanager
def joined(place: Place) -> Iterator[ProcessRanks]:
    """This process among the others, who all come here; threads are shared out among those of a machine.

    Raises:
        UserError: not all came, or no connection could be made.
    """
    _share_threads(place)
    assert place.address is not None
    host, port = place.address
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(dist.rendezvous("env://", place.rank, place.world, timeout=MEETING))
        store.set_timeout(MEETING)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        what = f"rank {place.rank} of {place.world} cannot meet the others at {host}:{port}: {_first_line(error)}"
        raise UserError(what, "start all ranks (SLURM: with srun), with one MASTER_ADDR and a free port") from None
    ranks = ProcessRanks(place)
    try:
        yield ranks
    except MmcliError as error:
        if error.of_every_rank:
            ranks.leave()
        raise
    ranks.leave()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _share_threads(place: Place) -> None:
    """Give each process of a machine its part of the cores, unless somebody has decided that."""
    if "OMP_NUM_THREADS" in os.environ or "SLURM_CPUS_PER_TASK" in os.environ or place.local_world == 1:
        return
    if allowed_cores() == os.cpu_count():  # else each process has cores of its own already
        torch.set_num_threads(cores_among(place.local_world))


def rank_device(device: torch.device, place: Place) -> torch.device:
    """The device of this rank: with CUDA each process of a machine has one of its own.

    Raises:
        UserError: there are fewer devices than processes, or the kind cannot be shared.
    """
    if place.world == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        what = f"--device {device.type} trains in one process, not in {place.world}"
        raise UserError(what, "give --device cpu, or leave --nproc out")
    if device.index is not None:
        what = f"--device {device} is one device for {place.world} processes"
        raise UserError(what, "give --device cuda: each process takes one of its own")
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        what = f"{place.local_world} processes and {count} CUDA devices on this machine"
        raise UserError(what, f"give --nproc {count}, or --device cpu")
    return torch.device("cuda", place.local_rank)
