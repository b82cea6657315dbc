from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import Any

import pytest

Read = Callable[..., tuple[list[Any], list[Any]]]
CHINESE = "兰州公交集团\n三条公交线\n"
FORMATS = {
    "t.txt": CHINESE,
    "t.jsonl": "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in CHINESE.split()),
    "t.json": json.dumps([{"text": line} for line in CHINESE.split()], ensure_ascii=False, indent=1),
    "t.csv": "text\n" + CHINESE,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "encode",
    [
        str.encode,
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    ],
    ids=["utf-8", "utf-8 bom", "utf-16le bom", "utf-16be bom", "crlf", "utf-16 crlf"],
)
def test_same_records_in_every_encoding(read: Read, name: str, encode: Callable[[str], bytes]) -> None:
    records, rejected = read(encode(FORMATS[name]), name)
    assert [record.value["text"] for record in records] == CHINESE.split()
    assert not rejected


@pytest.mark.parametrize("name", FORMATS)
def test_gbk_is_rejected_with_a_way_out(read: Read, name: str) -> None:
    records, rejected = read(FORMATS[name].encode("gbk"), name)
    assert not [record for record in records if "text" in record.value and record.value["text"].strip()]
    assert len(rejected) == 2
    assert all(item.reason.startswith("not UTF-8: byte 0x") for item in rejected)
    assert all("iconv -f GB18030" in item.reason for item in rejected)


def test_bytes_that_are_no_text_keep_their_place_and_raw_bytes(read: Read) -> None:
    records, rejected = read(b"fine\n\x80\x81 bad\nfine too\n", "a.txt")
    assert [record.value["text"] for record in records] == ["fine", "fine too"]
    assert [(item.line, item.reason, item.raw) for item in rejected] == [
        (2, "not UTF-8: byte 0x80 at character 1", b"\x80\x81 bad")
    ]


def test_nul_is_rejected(read: Read) -> None:
    records, rejected = read(b"fine\nb\0d\n", "a.txt")
    assert len(records) == 1
    assert [(item.line, item.reason.split(":")[0]) for item in rejected] == [(2, "a NUL character")]


def test_utf16_without_a_mark_is_told(read: Read) -> None:
    records, rejected = read("hello\nworld\n".encode("utf-16-le"), "a.txt")
    assert not records
    assert all("UTF-16 without a byte order mark" in item.reason for item in rejected)


def test_utf16_that_ends_in_half_a_character(read: Read) -> None:
    records, rejected = read(codecs.BOM_UTF16_LE + "one\ntwo\n".encode("utf-16-le") + b"x", "a.txt")
    assert [record.value["text"] for record in records] == ["one", "two"]
    assert [item.reason for item in rejected] == ["the text is damaged: truncated data"]


def test_utf16_with_half_a_surrogate_pair(read: Read) -> None:
    records, rejected = read(codecs.BOM_UTF16_LE + b"a\0\n\0" + b"\x00\xd8" + b"\n\0b\0", "a.txt")
    assert [record.value["text"] for record in records] == ["a", "b"]
    assert [(item.line, item.reason) for item in rejected] == [(2, "a lone surrogate: U+D800 at character 1")]


@pytest.mark.parametrize(
    ("escaped", "reason"),
    [
        (r"\ud800", r"a lone surrogate: written \ud800"),
        (r"\udc80 x", r"a lone surrogate: written \udc80"),
        (r"a\u0000b", r"a NUL character: written \u0000"),
    ],
)
def test_json_escapes_that_are_no_text(read: Read, escaped: str, reason: str) -> None:
    lines = ['{"text": "fine"}', '{"text": "@"}', '{"meta": [{"@": 1}], "text": "x"}']
    content = "\n".join(lines).replace("@", escaped)
    records, rejected = read(content, "a.jsonl")
    assert [record.value["text"] for record in records] == ["fine"]
    assert [(item.line, item.reason) for item in rejected] == [(2, reason), (3, reason)]


def test_json_escapes_that_are_text(read: Read) -> None:
    records, rejected = read(r'{"text": "\ud83d\ude00 \\u0000 \\ud800"}', "a.jsonl")
    assert [record.value["text"] for record in records] == ["😀 \\u0000 \\ud800"]
    assert not rejected


def test_unusual_line_ends_do_not_cut(read: Read) -> None:
    records, _ = read("a\u2028b\x0bc\x85d\ne\n", "a.txt")
    assert [record.value["text"] for record in records] == ["a\u2028b\x0bc\x85d", "e"]
