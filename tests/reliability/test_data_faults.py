"""Faults of encoding and layout, through the token cache: what is kept and what is said."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.sources.sources import open_sources
from mmcli.errors import UserError
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

TEXTS = ["第一条 first", "第二条 second", "第三条 third"]
LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "lines": lambda rows: "".join(row + "\n" for row in rows),
    "no last line end": "\n".join,
    "array": lambda rows: "[" + ", ".join(rows) + "]",
    "pretty array": lambda rows: "[\n  " + ",\n  ".join(rows) + "\n]\n",
}
ROWS = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
WHOLE: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "bom": lambda text: codecs.BOM_UTF8 + text.encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "bom and crlf": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "utf-16 le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16 be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "blank lines": lambda text: text.replace("\n", "\n \n\n").encode(),
}
IN_ONE: dict[str, tuple[bytes, str]] = {
    "nul": (b"\0", "a NUL character"),
    "escaped nul": (rb"\u0000", "a NUL character"),
    "not utf-8": (b"\xff", "not UTF-8"),
    "cut character": (b"\xe4\xb8", "not UTF-8"),
    "lone surrogate": (rb"\ud83d", "a lone surrogate"),
    "encoded surrogate": (b"\xed\xa0\xbd", "not UTF-8"),
    "bad escape": (rb"\x41", "not JSON"),
}
NO_TEXT: dict[str, tuple[Callable[[str], bytes], str]] = {
    "gbk": (lambda text: text.encode("gbk"), "iconv -f GB18030 -t UTF-8"),
    "utf-16 without a mark": (lambda text: text.encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "empty": (lambda text: b"", "is empty"),
    "white space": (lambda text: b" \r\n\t\n ", "is empty"),
    "white space with a mark": (lambda text: codecs.BOM_UTF8 + b"\n \n", "is empty"),
}
names = pytest.mark.parametrize("name", ["a.jsonl", "a.json"])  # the name does not decide
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=300)


def build(path: Path, tokenizer: Tokenizer) -> TokenCache:
    return TokenCache.build_or_open(path.parent / "cache", open_sources([str(path)]), tokenizer)


@names
@layouts
@pytest.mark.parametrize("fault", WHOLE)
def test_what_can_be_read_is_read(tmp_path: Path, tokenizer: Tokenizer, name: str, layout: str, fault: str) -> None:
    path = tmp_path / name
    path.write_bytes(WHOLE[fault](LAYOUTS[layout](ROWS)))
    cache = build(path, tokenizer)
    assert [tokenizer.decode(cache.ids(i).tolist()) for i in range(len(cache))] == TEXTS
    assert cache.tally.rejected == 0


@names
@layouts
@pytest.mark.parametrize("fault", IN_ONE)
def test_a_fault_costs_its_record_alone(
    tmp_path: Path, tokenizer: Tokenizer, name: str, layout: str, fault: str
) -> None:
    path = tmp_path / name
    content, reason = IN_ONE[fault]
    path.write_bytes(LAYOUTS[layout](ROWS).encode().replace(b"second", b"sec" + content + b"ond"))
    cache = build(path, tokenizer)
    assert [tokenizer.decode(cache.ids(i).tolist()) for i in range(len(cache))] == [TEXTS[0], TEXTS[2]]
    assert cache.tally.reasons == {reason: 1}
    line = {"array": 1, "pretty array": 3}.get(layout, 2)
    assert cache.tally.first[0].startswith(f"{path}:{line} {reason}")


@names
@layouts
@pytest.mark.parametrize("fault", NO_TEXT)
def test_a_file_without_text_is_refused_with_the_cause(
    tmp_path: Path, tokenizer: Tokenizer, name: str, layout: str, fault: str
) -> None:
    path = tmp_path / name
    encode, says = NO_TEXT[fault]
    path.write_bytes(encode(LAYOUTS[layout](ROWS)))
    with pytest.raises(UserError) as caught:
        build(path, tokenizer)
    assert str(path) in caught.value.what and says in caught.value.what
    assert "\n" not in caught.value.what and "\n" not in caught.value.fix
