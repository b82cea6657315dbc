"""The wheel is complete: presets inside, console script, entry points; it runs without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("mmcli-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_presets_and_the_entry_points(unpacked: Path) -> None:
    inside = {path.name for path in (unpacked / "mmcli" / "presets").glob("*.toml")}
    assert inside == {path.name for path in (ROOT / "presets").glob("*.toml")}
    (points,) = unpacked.glob("mmcli-*.dist-info/entry_points.txt")
    assert "mmcli = mmcli.cli:main" in points.read_text()
    assert "[mmcli.stages]" in points.read_text()
    assert not (unpacked / "tests").exists()


def test_the_wheel_runs_without_the_repository(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    code = "import mmcli, mmcli.config as c; print(mmcli.__file__); print(c.presets_dir())"
    where = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert all(line.startswith(str(unpacked)) for line in where.stdout.splitlines()), where.stdout
    command = [sys.executable, "-m", "mmcli", "params", "count", "--preset", "small", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"total": 25829888' in done.stdout
