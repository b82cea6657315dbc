"""A small tokenizer of ours, and a way to write other people's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "You are a helpful assistant. What is the weather in Paris today? It is sunny, 21 degrees.",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    "今天天气很好，我们去公园散步。你好，世界！",
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 345))\n",
    "I am fine, thank you. How are you? user assistant system think tool call response im start end",
]

Folder = Callable[..., Path]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=600)


@pytest.fixture
def write_folder(tmp_path: Path, tokenizer: Tokenizer) -> Folder:
    """Writes a folder with the vocabulary of `tokenizer`, other control tokens after it, and other files."""

    def write(
        controls: Sequence[dict[str, Any] | str],
        config: dict[str, Any] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None,
        **others: Any,
    ) -> Path:
        definition = json.loads(json.dumps(tokenizer.definition.tokenizer))
        names = set(tokenizer.control_tokens)
        vocab = {token: id for token, id in definition["model"]["vocab"].items() if token not in names}
        definition["model"]["vocab"] = {token: id for id, token in enumerate(vocab)}
        tokens = [{"content": each} if isinstance(each, str) else each for each in controls]
        exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        definition["added_tokens"] = [{"id": len(vocab) + n, **exact, **token} for n, token in enumerate(tokens)]
        if change is not None:
            change(definition)
        (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        for name, content in others.items():
            text = content if isinstance(content, str) else json.dumps(content)
            file = {"jinja": "chat_template.jinja", "model": "config.json"}.get(name, f"{name}.json")
            (tmp_path / file).write_text(text, encoding="utf-8")
        return tmp_path

    return write
