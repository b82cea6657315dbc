"""`mmcli plugins new`: packages whose tests pass as written, and names that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcli.api import Attempt, find_reward
from mmcli.cli import run
from mmcli.scaffold import KINDS, write_package

RUFF = ["ruff", "--isolated", "--config", "line-length=120", "--quiet"]


def install(site: Any, folder: Path) -> None:
    """What `pip install -e` leaves: metadata, and the folder on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site.add(project["name"], project["entry-points"], version=project["version"])
    (site.path / f"{project['name'].replace('-', '_')}.py").unlink()


def begin(kind: str, name: str, new_site: Any, tmp_path: Path) -> tuple[Any, Path]:
    folder = tmp_path / "package"
    assert run(["plugins", "new", name, "--kind", kind, "--out", str(folder)]) == 0
    (tmp_path / "site").mkdir()
    site = new_site(tmp_path / "site")
    install(site, folder)
    return site, folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_formatted_short_and_usable(
    kind: str, new_site: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, folder = begin(kind, "my_first2", new_site, tmp_path)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    captured = capsys.readouterr()
    assert sorted(map(Path, captured.out.splitlines())) == written
    assert captured.err == f"next: pip install -e {folder}; mmcli plugins check my_first2\n"
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "$" not in text and "my_first2" in text
        assert len(text.splitlines()) <= 95
    for command in (["check", "--select", "E,F,UP,B,SIM"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", RUFF[0], command[0], *RUFF[1:], *command[1:], str(folder)])
        assert done.returncode == 0
    monkeypatch.syspath_prepend(str(folder))
    with site.visible():
        assert run(["plugins", "list", "--json"]) == 0
    listed = capsys.readouterr().out
    assert '"my_first2"' in listed and '"state": "ok"' in listed.partition('"my_first2"')[2].partition("}")[0]


def test_a_name_with_a_dash_is_a_word_where_python_needs_one(new_site: Any, tmp_path: Path) -> None:
    site, folder = begin("reward", "short-reply", new_site, tmp_path)
    assert {path.name for path in folder.rglob("*.py")} == {"mmcli_short_reply.py", "test_short_reply.py"}
    with site.visible(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert find_reward("short-reply")(Attempt(prompt=(), answer="", reply="yes")) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_as_they_are_written(kind: str, new_site: Any, tmp_path: Path) -> None:
    site, folder = begin(kind, "fresh", new_site, tmp_path)
    path = os.pathsep.join(filter(None, [str(site.path), str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("stage", "My-Stage", "is not made of a-z, 0-9 and _"),
        ("stage", "2fast", "is not made of a-z, 0-9 and _"),
        ("stage", "../evil", "is not made of a-z, 0-9 and _"),
        ("stage", "sft", "belongs to mmcli itself"),
        ("stage", "chat", "belongs to mmcli itself"),
        ("suite", "demo", "belongs to mmcli itself"),
        ("reward", "No-Reward", "is not made of a-z, 0-9, _ and -"),
        ("stage", "mine", "is taken by p-mine"),
        ("stagee", "other", 'no kind "stagee"'),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_in_two_lines(
    kind: str,
    name: str,
    said: str,
    new_site: Any,
    tmp_path: Path,
    see: Callable[[Any], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = new_site(tmp_path)
    site.add_stage("p-mine", "mine", "")
    see(site)
    assert run(["plugins", "new", name, "--kind", kind, "--out", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err
    assert [line[:7] for line in captured.err.splitlines()] == ["error: ", "  fix: "], captured.err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert run(["plugins", "new", "other", "--out", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert len(write_package("stage", "other", tmp_path / "empty")) == 4
