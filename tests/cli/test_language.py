"""Help pages in Chinese: every text is translated, and every line fits 80 columns."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mmcli.cli import help, run
from mmcli.cli.language import CATALOGUE, NOTES, cells, language, translate, wrapped

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "generate.py"


def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate_reference", REFERENCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCLI_LANG", "zh")


def test_every_text_has_a_translation_and_none_is_left_over(chinese: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, None] = {}

    def recorded(text: str) -> str:
        asked[NOTES.sub("", text)] = None
        return translate(text)

    monkeypatch.setattr(help, "translate", recorded)
    pages = generate().pages()
    known = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    words = {"default", "given", "env", "required"}
    assert [text for text in asked if text and text not in known] == []
    assert sorted(set(known) - set(asked) - words) == []
    for name, page in pages.items():
        lines = page.splitlines() if not name.startswith("python-api") else []
        wide = [line for line in lines if cells(line) > 80 and not line.startswith(("- [", "  mmcli", "<!--"))]
        assert wide == [], name


def test_a_page_is_in_the_language_that_was_asked_for(
    chinese: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["params", "count", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("用法: mmcli params count") and "选项" in text and "[默认值: small]" in text
    monkeypatch.setenv("MMCLI_LANG", "en")
    assert run(["params", "count", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: mmcli params count")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "MMCLI_LANG": "en"}, "en"),
        ({"LANG": "de_DE.UTF-8", "MMCLI_LANG": "zh"}, "zh"),
    ],
)
def test_the_language_is_of_the_variable_then_of_the_locale(environment: dict[str, str], expected: str) -> None:
    assert language(environment) == expected


def test_lines_break_between_chinese_characters_and_at_spaces() -> None:
    text = "按参数量、字节和 FLOPs 精确计算一个模型，不需要建立它（也不需要 torch）。"
    for width in range(8, 60):
        lines = wrapped(text, width)
        assert max(map(cells, lines)) <= width + 2  # a mark that may not begin a line
        assert not any(line[0] in "，。、）" for line in lines) and not any(line.endswith("（") for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
