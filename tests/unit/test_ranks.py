"""Which process of a training this is, and how the work of a step is dealt."""

from __future__ import annotations

from collections import Counter

import pytest

from mmcli.errors import UserError
from mmcli.ranks import Place, Ranks, even_share, find_place, first_host

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "20003",
}


class Dealt(Ranks):
    """One of several, for what needs no other."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


def test_a_process_that_was_started_alone() -> None:
    assert find_place({}) == Place(0, 1, 0, 1, None)
    assert find_place({"RANK": "0", "WORLD_SIZE": "1"}) == Place()
    assert find_place({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == Place()


def test_the_place_that_torchrun_gives() -> None:
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, ("node1", 29500))
    kubernetes = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert find_place(kubernetes) == Place(3, 4, 0, 1, ("node1", 29500))


def test_the_place_that_slurm_gives() -> None:
    assert find_place(SLURM) == Place(5, 7, 1, 3, ("gpu07", 20003))
    assert find_place({**SLURM, "SLURM_JOB_ID": "30001"}).address == ("gpu07", 15001)
    assert find_place({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}).address == ("10.0.0.1", 4000)
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}
    assert find_place(step) == Place()  # one task of a larger job


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("node[03-05,9],x", "node03"), ("a1,b2", "a1"), ("rack-2-[10,12]", "rack-2-10")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "4"}, "RANK = 4 is not a number of 0 or more and below 4"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = two is not a number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT = 0 is not a number of 1 or more"),
    ],
)
def test_a_place_that_cannot_be_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        find_place({**TORCHRUN, **change})
    assert said in caught.value.what


def test_without_an_address_the_ranks_cannot_meet() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE = 4 without MASTER_ADDR"):
        find_place({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"})
    with pytest.raises(UserError, match="without a list of nodes"):
        find_place({name: value for name, value in SLURM.items() if name != "SLURM_JOB_NODELIST"})


@pytest.mark.parametrize("world", [1, 2, 3, 6, 9])
def test_ranks_share_the_parts_of_a_step(world: int) -> None:
    parts = [f"part {number}" for number in range(7)]
    seen: Counter[int] = Counter()
    for rank in range(world):
        share = Dealt(rank, world).share(parts)
        assert all(parts[number] == part for number, part in share.items())
        assert len(share) in (7 // world, -(-7 // world))
        seen.update(list(share))
    assert seen == Counter(range(7))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32, 100])
@pytest.mark.parametrize("most", [1, 3, 12, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_micro_batches_are_dealt_evenly(batch_size: int, most: int, world: int) -> None:
    size = even_share(most, batch_size, world)
    assert 1 <= size <= most
    if world == 1:
        assert size == most
        return
    parts = [min(size, batch_size - first) for first in range(0, batch_size, size)]
    each = [sum(parts[rank::world]) for rank in range(world)]
    assert sum(each) == batch_size
    assert batch_size < world or min(each) > 0
    assert max(each) - min(each) <= max(size, 1)
