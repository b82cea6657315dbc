"""A tokenizer without the bytes of characters that texts do without (SmolLM2's) is taken, and loses none in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmcli.errors import UserError
from mmcli.text.bytelevel import byte_alphabet
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer


def without(folder: Path, *bytes_taken: int) -> Path:
    """A tokenizer.json whose vocabulary lacks these bytes; ids stay as they are."""
    train_tokenizer(["Hello, how are you today?"] * 3, vocab_size=300).save(folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for symbol, byte in byte_alphabet().items():
        if byte in bytes_taken:
            del document["model"]["vocab"][symbol]
    document["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_what_it_cannot_write_becomes_the_replacement_character(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(without(tmp_path, 0x04, 0x1D, 0xF1, 0xF2))
    text = "a\x04b \x1d\x05 \U00040000\U000bffff\U000c0000 🙂 e\u0301"
    expected = "a\ufffdb \ufffd\x05 \ufffd\ufffd\U000c0000 🙂 \xe9"
    for ids in (tokenizer.encode_text(text), *tokenizer.encode_texts([text])):
        assert tokenizer.decode(ids) == expected
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("byte", [0x09, 0x0A, 0x41, 0x80, 0xC3, 0xE4, 0xF0])
def test_bytes_that_texts_need_are_still_asked_for(byte: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"lacks 1 bytes of UTF-8 .*0x{byte:02X}"):
        Tokenizer.load(without(tmp_path, 0x04, byte))
