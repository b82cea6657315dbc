from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmcli.data.formats.text import LINES_TARGET, MAX_DOCUMENT, PARAGRAPHS_TARGET, choose_cut

Read = Callable[..., tuple[list[Any], list[Any]]]


def test_rule_is_chosen_by_blank_lines() -> None:
    assert choose_cut("emma\nolivia\nava\n") == "lines"
    assert choose_cut("a line\n" * 1000 + "\n" * 50) == "lines"  # blank lines at the end say nothing
    assert choose_cut("a line\n" * 300 + "\n" + "a line\n" * 300) == "lines"
    assert choose_cut("FIRST:\nwords\n\nSECOND:\nwords\n") == "paragraphs"
    assert choose_cut("one line") == "lines"


def test_document_a_line(read: Read) -> None:
    records, rejected = read(
        "emma\n\r\n olivia \r\nava", "names.txt"
    )  # one blank line among three: too many for `lines`
    assert [record.value["text"] for record in records] == ["emma\n\n olivia \nava"]
    records, rejected = read("emma\r\nolivia \nava", "names.txt")
    assert [record.value["text"] for record in records] == ["emma", "olivia ", "ava"]
    assert [record.line for record in records] == [1, 2, 3]
    assert not rejected


def test_short_text_with_paragraphs_is_one_document(read: Read) -> None:
    text = "First.\n\n  indented\n\n\nLast."
    for name in ("a.txt", "a.md"):
        records, _ = read("\n\n" + text + "\n\n", name)
        assert [(record.line, record.value["text"]) for record in records] == [(3, text)]


def test_markdown_is_never_cut_at_lines(read: Read) -> None:
    records, _ = read("# title\ntext\n", "a.md")
    assert [record.value["text"] for record in records] == ["# title\ntext"]


def test_long_text_is_cut_at_blank_lines_and_nothing_is_lost(read: Read) -> None:
    paragraphs = [f"paragraph {number} " + "word " * (number % 90) for number in range(2000)]
    text = "\n\n".join(paragraphs)
    records, rejected = read(text, "long.txt")
    documents = [record.value["text"] for record in records]
    assert not rejected
    assert "\n\n".join(documents) == text
    assert all(PARAGRAPHS_TARGET <= len(document) < PARAGRAPHS_TARGET + 1000 for document in documents[:-1])
    assert [record.line for record in records] == [
        1 + 2 * paragraphs.index(document.split("\n")[0]) for document in documents
    ]


def test_paragraph_without_end_is_cut_at_a_line_end(read: Read) -> None:
    text = "head\n\n" + "\n".join(f"line {number}" for number in range(30_000))
    records, _ = read(text, "a.md")
    documents = [record.value["text"] for record in records]
    assert "\n".join(documents) == text
    assert max(map(len, documents)) < LINES_TARGET + 100


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_line_of_any_length_is_cut_at_the_limit(read: Read, name: str) -> None:
    text = "é" * (2 * MAX_DOCUMENT + 10)
    records, rejected = read(text, name)
    assert "".join(record.value["text"] for record in records) == text
    assert max(len(record.value["text"]) for record in records) <= MAX_DOCUMENT
    assert {record.line for record in records} == {1}
    assert not rejected


def test_bad_line_is_rejected_and_ends_its_document(read: Read) -> None:
    records, rejected = read(b"one\n\ntwo\n\xff\xfe bad\nthree\n", "a.txt")
    assert [(record.line, record.value["text"]) for record in records] == [(1, "one\n\ntwo"), (5, "three")]
    assert [(item.line, item.raw) for item in rejected] == [(4, b"\xff\xfe bad")]
