"""`mmcli doctor`: each finding is ok, or says what to do; its exit code says whether one can train."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmcli import doctor
from mmcli.cli import run as mmcli
from mmcli.machine import Busy, Memory
from mmcli.run import Run

G = 10**9


def states(findings: object) -> list[tuple[str, str]]:
    return [(each.name, each.state) for each in findings]  # type: ignore[attr-defined]


def test_it_lists_what_a_training_would_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In lines of 80 columns, and as JSON; whoever has trained here is told what can be resumed."""
    run = Run.create(tmp_path, "pretrain", "test")
    (run.checkpoints / "step-000001").mkdir(parents=True)
    assert mmcli(["doctor", "--runs-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for name in ("python", "libraries", "cpu", "disk", "load", "device", "matrix rate", "compiler", "extras", "runs"):
        assert f" {name} " in text, name
    assert "fp32" in text and "FLOP/s" in text and "\x1b" not in text
    assert "mmcli resume 1" in " ".join(text.split())


def test_json_has_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mmcli(["doctor", "--json", "--runs-dir", str(tmp_path / "none")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is True and {"name", "state", "text", "fix"} == set(shown["findings"][0])
    assert all(each["fix"] for each in shown["findings"] if each["state"] != "ok")
    assert not (tmp_path / "none").exists()


def test_a_runs_folder_that_cannot_be_written_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "file"
    place.write_text("")
    assert mmcli(["doctor", "--runs-dir", str(place / "runs")]) == 1
    assert "cannot be written" in " ".join(capsys.readouterr().out.split())


def test_a_torch_that_does_not_import_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = doctor.check_torch()
    assert found.state == "error" and "torch does not work" in found.text and found.fix


def test_a_missing_library_is_named() -> None:
    def version(name: str) -> str:
        if name in ("torch", "onnx"):
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    found = list(doctor.check_libraries(version))
    assert states(found) == [("libraries", "ok"), ("libraries", "error"), ("libraries", "warning")]
    assert found[1].fix == "pip install torch"


@pytest.mark.parametrize(
    ("memory", "state", "part"),
    [
        (Memory(16 * G, 9 * G, 0, 0, None), "ok", "9.0 GB free of 16.0 GB"),
        (Memory(16 * G, 1 * G, 0, 0, None), "warning", "1.0 GB free"),
        (Memory(16 * G, 9 * G, 4 * G, 3 * G, None), "warning", "swap 3.0 GB used"),
        (Memory(16 * G, 3 * G, 0, 0, 4 * G), "ok", "3.0 GB free of 4.0 GB (the container's limit)"),
    ],
)
def test_memory(memory: Memory, state: str, part: str) -> None:
    (found,) = doctor.check_memory(memory)
    assert found.state == state and part in found.text


def test_runs_in_memory_are_warned_of(tmp_path: Path) -> None:
    assert ("disk", "warning") in states(doctor.check_disk(tmp_path, lambda path: "tmpfs"))
    assert ("disk", "warning") not in states(doctor.check_disk(tmp_path, lambda path: "ext4"))[1:]


def test_other_programs_that_compute_are_named() -> None:
    (quiet,) = doctor.check_load(0.1, [Busy(7, "x", 0.3)], 2)
    assert quiet.state == "ok"
    (busy,) = doctor.check_load(1.5, [Busy(7, "cc1plus", 0.98)], 2)
    assert busy.state == "warning" and "cc1plus (pid 7) 98%" in busy.text and "OMP_NUM_THREADS=1" in busy.fix


def test_extras_say_how_they_are_installed() -> None:
    lines = ['no-such-package>=1; extra == "web"', "pytest; extra == 'web2'", "torch>=2.9"]
    found = doctor.check_extras(lambda name: lines)
    assert found.text == 'web not installed (pip install "mmcli[web]"); web2 installed'


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "pretrain", "test")
    (run.path / "run.json").write_text("{")
    fine, broken = doctor.check_runs(tmp_path)
    assert fine.state == "ok" and broken.state == "warning" and "run.json" in broken.text and "verify 1" in broken.fix
