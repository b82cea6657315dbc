"""How many threads an export runs with: measured once, remembered by machine and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from mmcli.generate import onnx_threads
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_threads import FILE, choose_threads

TIMES = {1: 0.010, 2: 0.006, 4: 0.0059}  # four threads are hardly quicker than two


class Machine:
    """Four cores, a cache folder, and how long a token takes with how many threads."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.tried: list[int] = []
        self.times = dict(TIMES)
        self.now = 0.0

    def choose(self, folder: Path) -> int | None:
        return choose_threads(folder, self.load)

    def load(self, threads: int) -> Engine:
        """An engine that takes the time of that many threads for a token."""
        self.tried.append(threads)
        seconds = self.times[threads]

        class Timed:
            max_len = 3

            def decode(_, slots: list[int], ids: list[int]) -> None:
                self.now += seconds

        return cast(Engine, Timed())

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "cache")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(onnx_threads.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    monkeypatch.setattr(onnx_threads, "usable_threads", lambda: 4)
    monkeypatch.setattr(onnx_threads, "time", made)
    return made


def export(folder: Path, size: int = 100) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * size)
    return folder


def test_the_fewest_of_the_quickest_is_remembered_for_every_copy(machine: Machine, tmp_path: Path) -> None:
    first = export(tmp_path / "one")
    first.chmod(0o555)
    assert machine.choose(first) == 2 and machine.tried == [1, 2, 4]
    assert machine.choose(first) == 2 and machine.choose(export(tmp_path / "copy")) == 2
    assert machine.tried == [1, 2, 4]
    machine.times = {1: 0.001, 2: 0.002, 4: 0.003}
    assert machine.choose(export(tmp_path / "smaller", 50)) == 1
    assert machine.choose(first) == 2  # the other one is still known
    assert [path.name for path in (machine.cache / "mmcli").iterdir()] == [FILE]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"KEY": "two"}', '{"KEY": 64}', '{"KEY": true}'])
def test_a_damaged_memory_is_measured_again(machine: Machine, tmp_path: Path, content: str) -> None:
    folder = export(tmp_path / "one")
    assert machine.choose(folder) == 2
    file = machine.cache / "mmcli" / FILE
    (key,) = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(content.replace("KEY", key), encoding="utf-8")
    assert machine.choose(folder) == 2 and len(machine.tried) == 6
    assert json.loads(file.read_text(encoding="utf-8")) == {key: 2}


def test_a_cache_that_cannot_be_written_is_done_without(machine: Machine, tmp_path: Path) -> None:
    machine.cache.write_text("a file where the folder should be")
    assert machine.choose(export(tmp_path / "one")) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("cache")] == ["cache"]


def test_what_a_person_set_is_taken_without_measuring(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.choose(export(tmp_path / "one")) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(onnx_threads, "usable_threads", lambda: 1)
    assert machine.choose(tmp_path / "one") == 1
    assert machine.tried == [] and not machine.cache.exists()
