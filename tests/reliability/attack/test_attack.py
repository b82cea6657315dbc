"""A sample of each attack, and the full counts of docs/reliability.md (slow)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attack.report import FULL, attack
from attack.scene import Scene, make_scene
from attack.server import Server
from attack.trials import can_mount

SAMPLE = {"kills": 9, "flips": 10, "truncations": 10, "disks": 2, "signals": 12, "rows": 600}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Finished and half-finished runs of each stage."""
    with Server() as server:
        yield make_scene(tmp_path_factory.mktemp("attack") / "scene", server)


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_holds(scene: Scene, kind: str) -> None:
    holds(scene, kind, SAMPLE[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_all_hold(scene: Scene, kind: str) -> None:
    holds(scene, kind, FULL[kind])


def holds(scene: Scene, kind: str, count: int) -> None:
    """Fail with every trial that broke a promise."""
    if kind == "disks" and not can_mount(scene.folder / "mount"):
        pytest.skip("a small disk needs root on Linux (tmpfs)")
    counts = attack(scene, kind, count)
    assert len(counts.trials) == count
    assert not counts.problems, "\n".join([f"{counts.outcomes}", *counts.problems])


def test_an_unpromised_outcome_is_a_problem(scene: Scene, tmp_path: Path) -> None:
    """The attack itself sees damage: a model whose weights are other ones is not the same bytes."""
    from attack.scene import difference, run_folder

    work = scene.copy("whole", tmp_path / "trial") / "work"
    run = run_folder(work, "sft")
    assert difference(run, scene.expected["sft"]) is None
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert difference(run, scene.expected["sft"]) == "model/model.safetensors differs"
