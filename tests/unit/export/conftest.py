"""A tokenizer, and small models saved as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 🙂",
]
SIZES: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 416, "hidden_dim": 96,
    "max_seq_len": 96, "init_std": 0.15,
}  # fmt: skip
Save = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(LINES * 3, vocab_size=400)


@pytest.fixture
def save(tmp_path: Path, tokenizer: Tokenizer) -> Save:
    """save(seed=1, **config): a folder with a small random model whose norms and biases are not 1 and 0."""

    def make(name: str = "model", seed: int = 1, **values: Any) -> Path:
        model = Transformer(ModelConfig(**{**SIZES, **values}), seed=seed)
        torch.manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.data += 0.1 * torch.randn_like(parameter)
        save_model(tmp_path / name, model, model.config, tokenizer)
        return tmp_path / name

    return make
