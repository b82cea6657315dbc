"""Help pages in Chinese: `MMCLI_LANG=zh`, or a Chinese locale. What is not in the catalogue is shown in English.

The catalogue, help_zh.json, has each English text as its key, so a text that changes has to be translated again; a test
finds those that lack.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CATALOGUE = Path(__file__).with_name("help_zh.json")
VARIABLE = "MMCLI_LANG"
NOTES = re.compile(r"(?:\s*\[[^\[\]]*\])+$")  # [default: 3] at the end of an option's help
NOT_FIRST = "，。、；：？！）」』”’》…,.;:?!)]}%"  # of a line
NOT_LAST = "（「『“‘《([{"


def language(environment: Mapping[str, str] = os.environ) -> str:
    """ "zh" or "en": of MMCLI_LANG, else of the locale's messages."""
    names = (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG")
    value = next((environment[name] for name in names if environment.get(name)), "")
    return "zh" if value.lower().startswith("zh") else "en"


@cache
def _catalogue(chosen: str) -> Mapping[str, str]:
    if chosen != "zh":
        return {}
    found: dict[str, str] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return found


def translate(text: str) -> str:
    """The text in the language of the help pages; the notes in brackets at its end stay, but for their first word."""
    known = _catalogue(language())
    if not known or not text:
        return text
    notes = match.group() if (match := NOTES.search(text)) else ""
    plain = text[: len(text) - len(notes)] if notes else text
    return known.get(plain, plain) + re.sub(r"\[(\w+)", lambda word: "[" + known.get(word[1], word[1]), notes)


def cells(text: str) -> int:
    """Columns of a terminal that the text takes: two for a wide character."""
    return sum(_width(each) for each in text)


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces and between Chinese characters, never before a comma."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and cells(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> list[str]:
    """What stays on one line: a note in brackets, a word and the space after it, a Chinese character with its marks."""
    found: list[str] = []
    for part in re.split(r"(\[[^\[\]]*\])", text):
        for character in [part] if part.startswith("[") else part:
            before = found[-1] if found else " "
            breaks = before[-1] == " " or cells(character) > 1 or cells(before[-1]) > 1
            if found and (not breaks or character in NOT_FIRST or before[-1] in NOT_LAST or character == " "):
                found[-1] += character
            else:
                found.append(character)
    return found
