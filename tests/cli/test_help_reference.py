"""docs/reference/ is what `--help` prints; every page is readable and its examples parse."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from mmcli.cli import app, run

FOLDER = Path(__file__).parents[2] / "docs/reference"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("generate_reference", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load()
PAGES: dict[str, str] = generate.pages()
COMMANDS = [name for name in PAGES if name not in ("README.md", generate.API_PAGE)]


@pytest.fixture
def built_ins() -> Iterator[None]:
    with generate.built_ins_only():
        yield


def test_the_reference_is_complete() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == set(PAGES), "run: make reference"


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_help_prints(name: str) -> None:
    path = FOLDER / name
    assert path.is_file() and path.read_text(encoding="utf-8") == PAGES[name], "run: make reference"


@pytest.mark.parametrize("words", [[], ["params", "count"], ["config", "show", "dpo"]], ids=" ".join)
@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_command_line_prints_the_page_in_every_terminal(
    words: list[str],
    columns: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    built_ins: None,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMCLI_RUNS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out.strip()
    assert f"\n```\n{shown}\n```\n" in PAGES["-".join(words) + ".md" if words else "README.md"]


@pytest.mark.parametrize("name", ["README.md", *COMMANDS])
def test_a_page_is_readable(name: str) -> None:
    text = PAGES[name]
    assert max(map(len, text.splitlines())) <= 120  # an example is not wrapped
    for leak in ("<bool>", "<str>", "list[", "…", "[dim]", "\\[", "None"):
        assert leak not in text
    assert ("--install-completion" in text) == (name == "README.md")


def test_text_in_brackets_is_shown() -> None:
    assert "whose [model] table changes" in PAGES["params-count.md"]


def _examples(name: str) -> list[str]:
    lines = iter(PAGES[name].splitlines())
    for line in lines:
        if line in ("Example:", "Examples:"):
            return [each.strip() for each in iter(lambda: next(lines), "")]
    return []


def test_every_command_has_an_example() -> None:
    missing = [name for name in COMMANDS if "COMMAND ..." not in PAGES[name] and not _examples(name)]
    assert not missing


@pytest.mark.parametrize("example", [each for name in PAGES for each in _examples(name)])
def test_an_example_parses(example: str, built_ins: None) -> None:
    program, *args = shlex.split(example)
    assert program == "mmcli"
    command: Any = typer.main.get_command(app)
    context = command.make_context("mmcli", [], resilient_parsing=True)
    while isinstance(command, TyperGroup):
        name, command, args = command.resolve_command(context, args)
        if isinstance(command, TyperGroup):
            context = command.make_context(name, [], parent=context, resilient_parsing=True)
    command.make_context(name, args, parent=context)  # raises a usage error if an option is unknown or a value is wrong
