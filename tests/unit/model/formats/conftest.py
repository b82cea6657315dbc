"""A tokenizer, and a small model saved as a folder."""

from __future__ import annotations

import pytest

from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(LINES * 3, vocab_size=380)
