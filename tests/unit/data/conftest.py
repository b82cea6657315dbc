from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmcli.data.encode.cache import TokenCache
from mmcli.data.record import Record, Rejected
from mmcli.data.sources.sources import open_sources
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "judge"]


def sentence(number: int, words: int) -> str:
    """A text of so many words, another one for each number."""
    return " ".join(f"{WORDS[(number * 7 + i * i) % len(WORDS)]}" for i in range(words)) + f" {number}."


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([sentence(number, 12) for number in range(200)], vocab_size=400)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[list[Record], list[Rejected]]]:
    """Writes bytes to a file of a name and reads them back: (records, rejected)."""

    def run(content: bytes | str, name: str, kind: Any = "text") -> tuple[list[Record], list[Rejected]]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        items = list(open_sources([str(path)], kind=kind).records())
        records = [item for item in items if isinstance(item, Record)]
        return records, [item for item in items if isinstance(item, Rejected)]

    return run


@pytest.fixture
def text_cache(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[list[str]], TokenCache]:
    def build(texts: list[str]) -> TokenCache:
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)]), tokenizer)

    return build


@pytest.fixture
def chat_cache(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[list[tuple[str, str]]], TokenCache]:
    def build(pairs: list[tuple[str, str]]) -> TokenCache:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in pairs))
        return TokenCache.build_or_open(tmp_path / "cache", open_sources([str(path)], kind="chat"), tokenizer)

    return build
