"""The processes that train one model together, as one of them sees them. No torch here.

`find_place` reads from the environment which process this is, as torchrun, SLURM, Kubernetes and `--nproc` tell it.
`Ranks` is what the training asks of the others; alone, every answer is its own. `mmcli.train.ranks` has the one of
several processes.

Rank 0 alone writes: the run folder, the token cache, checkpoints. It prepares the run first, and has the others encode
parts of large data; then they read what it has made, as a resumed run would, and the training begins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mmcli.errors import MmcliError, UserError

if TYPE_CHECKING:
    from mmcli.run import Run

T = TypeVar("T")
LAUNCHED = "MMCLI_LAUNCHED"  # set in the processes that --nproc starts
SLURM_PORTS = 15000, 30000  # a job's port is among these, by its number


class RankLost(MmcliError):
    """A process of the training ended, and with it the training."""

    exit_code = 75  # of a rank that is not itself to blame; a launcher tells it from the one that is


@dataclass(frozen=True)
class Place:
    """Which process of a training this is.

    Attributes:
        rank, world: its number among all, and how many there are.
        local_rank, local_world: the same among those of this machine.
        address: (host, port) of rank 0, where all meet; None for a single process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: tuple[str, int] | None = None


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process, as torchrun (or whatever sets its variables) or SLURM gave it.

    Raises:
        UserError: a variable is missing, or is not a number in its range.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world = _number(environment, "WORLD_SIZE", 1)
        rank = _number(environment, "RANK", 0, world)
        local_world = _number(environment, "LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in environment else 1
        local_rank = _number(environment, "LOCAL_RANK", 0) if "LOCAL_RANK" in environment else 0
        if world == 1:
            return Place()
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in environment:
                raise UserError(f"WORLD_SIZE = {world} without {name}", f"set {name}, or start it with torchrun")
        host, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 1, 65536)
        return Place(rank, world, local_rank, local_world, (host, port))
    return _slurm_place(environment)


def _slurm_place(environment: Mapping[str, str]) -> Place:
    """The place of a task of an `srun` step: the first host of its node list is where all meet."""
    total = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if any(name not in environment for name in (total, "SLURM_PROCID", "SLURM_LOCALID")):
        return Place()
    world = _number(environment, total, 1)
    if world == 1:
        return Place()
    rank = _number(environment, "SLURM_PROCID", 0, world)
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((environment[name] for name in names if environment.get(name)), None)
    host = environment.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    if host is None:
        raise UserError(f"{total} = {world} without a list of nodes", "start it with srun, or set MASTER_ADDR")
    low, high = SLURM_PORTS
    job = int(environment.get("SLURM_JOB_ID", "0") or 0)
    port = _number(environment, "MASTER_PORT", 1, 65536) if "MASTER_PORT" in environment else low + job % (high - low)
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1"))
    return Place(
        rank, world, _number(environment, "SLURM_LOCALID", 0), _tasks_here(per_node, environment), (host, port)
    )


def _tasks_here(per_node: str, environment: Mapping[str, str]) -> int:
    """Tasks of this node, of a list such as `4(x2),3`."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node):
        counts += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", "0") or 0)
    return counts[min(node, len(counts) - 1)] if counts else 1


def first_host(nodes: str) -> str:
    """The first of a SLURM node list: `node03` of `node[03-05,9],login1`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    assert match is not None
    head, number, tail = match.groups()
    return f"{head}{number or ''}{tail or ''}"


def _number(environment: Mapping[str, str], name: str, least: int, below: int | None = None) -> int:
    text = environment[name]
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        upper = f" and below {below}" if below is not None else ""
        raise UserError(f"{name} = {text} is not a number of {least} or more{upper}", f"set {name} as torchrun does")
    return int(text)


class Ranks:
    """The processes of a training; this one is alone."""

    rank = 0
    world = 1
    local_world = 1  # of this machine

    @property
    def is_writer(self) -> bool:
        """True of the one process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value that each rank gives, in their order; JSON values, whose tuples become lists."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value that rank 0 gives."""
        return value

    def choose(self, run: Run, key: str, choice: Callable[[], Any]) -> Any:
        """`Run.choose`, by rank 0; where it is a new choice, every rank calls `choice`."""
        return run.choose(key, choice)

    def prepared(self, message: Any) -> None:
        """Rank 0 has prepared the run: the others, who wait for this `message`, begin to read it."""

    def order(self, work: Any) -> bool:
        """Rank 0, while it prepares the run, has the others do some work with it, JSON values that tell them which;
        False where nobody waits for that."""
        return False

    def copy_weights(self, parameters: Iterable[Any]) -> None:
        """Every parameter becomes that of rank 0, which may have made its own by more than the seed."""

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """The gradient of each parameter becomes the sum over the ranks; one that no rank has stays None."""

    def share(self, parts: Sequence[T]) -> dict[int, T]:
        """The parts that are this rank's, by number: dealt in turn."""
        return {number: parts[number] for number in range(self.rank, len(parts), self.world)}


def even_share(most: int, batch_size: int, ranks: int) -> int:
    """Units of a micro-batch, `most` or fewer, with which the micro-batches of a step are dealt evenly to the ranks."""
    if ranks == 1:
        return most
    each = -(-batch_size // ranks)
    passes = -(-each // most)
    size = -(-each // passes)
    while size > 1 and -(-batch_size // size) < ranks:  # none goes without
        size -= 1
    return size
