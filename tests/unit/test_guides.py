"""Every guide is there in both languages, with the same programs and commands; links of documents lead somewhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
ENGLISH = sorted(path.stem for path in GUIDES.glob("*.md") if not path.stem.endswith("_zh"))
LINKING = [path.relative_to(ROOT).as_posix() for path in sorted([*GUIDES.glob("*.md"), *ROOT.glob("README*.md")])]

BLOCK = re.compile(r"^ *(?P<fence>```+)[^`\n]*\n.*?^ *(?P=fence) *$", re.DOTALL | re.MULTILINE)
REMARK = re.compile(r"^(mmcli .*?) +# .*$", re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)")


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def blocks(text: str) -> list[str]:
    """The blocks, less what stands behind the commands of mmcli: that is in the guide's language."""
    return [REMARK.sub(r"\1", match.group()) for match in BLOCK.finditer(text)]


def inline_code(text: str) -> list[str]:
    """The inline-code spans outside the blocks; a line break inside one counts as a space."""
    return [" ".join(match.group(2).split()) for match in INLINE_CODE.finditer(BLOCK.sub("", text))]


def links(text: str) -> list[str]:
    """The targets of links to files of this repository, without their anchors."""
    prose = INLINE_CODE.sub("`code`", BLOCK.sub("", text))
    found = [match.group(1) for match in LINK.finditer(prose)]
    local = [target.partition("#")[0] for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]
    return [unquote(target) for target in local if target]


def test_there_are_guides() -> None:
    assert {"plugins", "python", "faq"} <= set(ENGLISH)
    assert {"README.md", "README_zh.md", "docs/guides/faq_zh.md"} <= set(LINKING)


def test_no_chinese_guide_is_alone() -> None:
    assert {path.stem.removesuffix("_zh") for path in GUIDES.glob("*_zh.md")} <= set(ENGLISH)


@pytest.mark.parametrize("name", ENGLISH)
def test_the_blocks_are_the_same_in_chinese(name: str) -> None:
    english, chinese = read(GUIDES / f"{name}.md"), read(GUIDES / f"{name}_zh.md")
    assert blocks(chinese) == blocks(english)
    for text in (english, chinese):  # no block is left open, and none is overlooked
        assert "```" not in BLOCK.sub("", text)


@pytest.mark.parametrize("name", ENGLISH)
def test_the_commands_and_options_are_the_same_in_chinese(name: str) -> None:
    english, chinese = (
        Counter(code for code in inline_code(read(GUIDES / file)) if code.startswith(("mmcli ", "--")))
        for file in (f"{name}.md", f"{name}_zh.md")
    )
    assert not english - chinese, "in the English guide only"


@pytest.mark.parametrize("name", ENGLISH)
def test_the_two_link_to_each_other_below_the_title(name: str) -> None:
    for file, link in ((f"{name}.md", f"[中文]({name}_zh.md)"), (f"{name}_zh.md", f"[English]({name}.md)")):
        lines = read(GUIDES / file).split("\n")
        assert lines[0].startswith("# ")
        assert lines[1:4] == ["", link, ""], file


@pytest.mark.parametrize("name", LINKING)
def test_links_lead_to_files_that_exist(name: str) -> None:
    path = ROOT / name
    assert [target for target in links(read(path)) if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("name", [name for name in LINKING if name.endswith("_zh.md")])
def test_chinese_documents_link_to_chinese_guides(name: str) -> None:
    path = ROOT / name
    own = path.with_name(path.name.replace("_zh.md", ".md"))
    english = {GUIDES / f"{each}.md" for each in ENGLISH} - {own}
    assert [target for target in links(read(path)) if (path.parent / target).resolve() in english] == []


def test_what_counts_as_a_link_and_as_code() -> None:
    text = "[a](b.md#c) `[x](y.md)` [d](#e) [f](https://g.h) [i\nj](../k%20l)\n```sh\n[m](n.md) `--o`\n```\n`--p\nq`\n"
    assert links(text) == ["b.md", "../k l"]
    assert inline_code(text) == ["[x](y.md)", "--p q"]
    assert blocks(text) == ["```sh\n[m](n.md) `--o`\n```"]
