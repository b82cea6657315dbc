"""Every shell block that the READMEs mark as tested runs as it stands, in order, in an empty folder."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli.data import demo

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- tested -->\n)?```sh\n(.*?)```", re.DOTALL)
BY_HAND = {"make demo", "make test"}  # what CI and a fresh clone run


def blocks(name: str) -> list[tuple[bool, list[str]]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [(bool(marked), block.strip().splitlines()) for marked, block in BLOCK.findall(text)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A person's own files, as the READMEs name them."""
    text = "\n".join(itertools.islice(demo.documents(), 1500))
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    for name, records in (("conversations", demo.conversations()), ("preferences", demo.preferences())):
        lines = (json.dumps(record, ensure_ascii=False) for record in itertools.islice(records, 300))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", pytest.param("README_zh.md", marks=pytest.mark.slow)])  # the same ones
def test_the_commands_of_the_readme_run(name: str, folder: Path) -> None:
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    environment.pop("MMCLI_RUNS", None)
    commands = [line for marked, lines in blocks(name) if marked for line in lines]
    assert len(commands) >= 12
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout or done.stderr, command


def test_every_block_is_tested_and_both_languages_show_the_same() -> None:
    shown = {}
    for name in ("README.md", "README_zh.md"):
        unmarked = {line for marked, lines in blocks(name) if not marked for line in lines}
        assert unmarked <= BY_HAND, unmarked
        shown[name] = [re.sub(r'"[^"]*"', '""', line) for _, lines in blocks(name) for line in lines]
    assert shown["README.md"] == shown["README_zh.md"]
