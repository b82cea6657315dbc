"""Files and folders are whole or absent, and know their damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmcli import files
from mmcli.files import atomic_file, atomic_folder, previous, remove_leftovers, write_atomic
from mmcli.manifest import damage


def test_a_sealed_folder_knows_its_damage(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as beside:
        (beside / "weights").write_bytes(b"x" * 100)
        assert not (tmp_path / "step").exists()
    assert damage(tmp_path / "step") is None
    (tmp_path / "step" / "weights").write_bytes(b"x" * 99 + b"y")
    assert "weights is damaged" in str(damage(tmp_path / "step"))
    (tmp_path / "step" / "weights").unlink()
    assert "weights is missing" in str(damage(tmp_path / "step"))


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as beside:
        (beside / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as beside:
        (beside / "a").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_atomic_write_replaces_whole_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "run.json", b"{}")
    write_atomic(tmp_path / "run.json", json.dumps({"a": 1}).encode())
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_file_that_is_filled_is_whole_or_as_it_was(tmp_path: Path) -> None:
    left = tmp_path / "out" / f".m.gguf.{2**22 + 1}.tmp"  # of a writer that was killed
    left.parent.mkdir()
    left.write_text("a part")
    left.with_name(left.name + ".lock").touch()
    with atomic_file(tmp_path / "out" / "m.gguf") as beside:
        beside.write_text("old")
        assert not (tmp_path / "out" / "m.gguf").exists()
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "out" / "m.gguf") as beside:
        beside.write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "m.gguf").read_text() == "old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]


def test_every_file_of_a_folder_has_the_same_mode(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as beside:
        save_file({"a": np.zeros(3)}, beside / "weights.safetensors")  # made so that only its owner reads it
        (beside / "progress.json").write_text("{}")
    assert len({path.stat().st_mode for path in (tmp_path / "step").iterdir()}) == 1


def replace(folder: Path, content: str) -> None:
    with atomic_folder(folder) as beside:
        (beside / "a").write_text(content)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders")
def test_a_folder_is_there_after_every_step_of_its_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    replace(model, "1")
    absent: list[str] = []

    def looking(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            result = real(*args, **options)
            if not (model / "a").is_file():
                absent.append(name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("replace", "rename", "fsync", "unlink", "rmdir"):
        looking(name)
    replace(model, "2")
    assert absent == []
    assert (model / "a").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_an_exchange_a_killed_replacement_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    model, real = tmp_path / "model", os.replace
    replace(model, "1")
    replace(model, "2")
    assert (model / "a").read_text() == "2" and not previous(model).exists()

    def killed(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target) == previous(model):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        replace(model, "3")
    assert not model.exists() and (previous(model) / "a").read_text() == "2"
    assert damage(previous(model)) is None
    assert remove_leftovers(tmp_path, alone=False) == [] and not model.exists()
    remove_leftovers(tmp_path, alone=True)
    assert (model / "a").read_text() == "2" and damage(model) is None
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


WRITER = """
import os, signal, sys, time
from pathlib import Path
from mmcli.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as beside:
    (beside / "a").write_text("half")
    print("ready", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def writer(folder: Path, what: str) -> subprocess.Popen[str]:
    """A process that is writing `folder`, or was killed while it did."""
    command = [sys.executable, "-c", WRITER, str(folder), what]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if what == "die":
        process.wait()
    return process


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead = writer(tmp_path / "step", "die")
    assert {path.name for path in tmp_path.iterdir()} == {f".step.{dead.pid}.tmp", f".step.{dead.pid}.tmp.lock"}
    alive = writer(tmp_path / "step", "live")  # the next writer of the same folder cleans up
    assert {path.name for path in tmp_path.iterdir()} == {f".step.{alive.pid}.tmp", f".step.{alive.pid}.tmp.lock"}
    writer(tmp_path / "model", "die")
    (tmp_path / ".run.json.1.tmp").write_text("{")
    assert [path.name.split(".")[1] for path in remove_leftovers(tmp_path, alone=False)] == ["model"]
    assert [path.name for path in remove_leftovers(tmp_path, alone=True)] == [".run.json.1.tmp"]
    alive.communicate("", timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_temporary_folder_without_a_lock_is_removed_when_it_is_old(tmp_path: Path) -> None:
    left = tmp_path / ".model.7.tmp"
    left.mkdir()
    assert remove_leftovers(tmp_path, alone=False) == [] and left.exists()
    os.utime(left, (1, 1))
    assert remove_leftovers(tmp_path, alone=False) == [left]
    assert not left.exists()
