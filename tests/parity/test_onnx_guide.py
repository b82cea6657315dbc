"""The programs in docs/guides/onnx.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmcli.export.onnx_export import export_onnx
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.train import train_tokenizer

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "onnx.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, vocab_size=400, max_seq_len=128, init_std=0.15)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guide")
    tokenizer = train_tokenizer(["What is a cloud?", "user assistant"] * 5, vocab_size=400)
    save_model(root / "model", Transformer(CONFIG, seed=2), CONFIG, tokenizer)
    return export_onnx(root / "model", root / "runs" / "0002-sft-tiny" / "export" / "onnx-fp32").folder


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_of_the_guide_run(number: int, exported: Path) -> None:
    root = exported.parents[3]
    done = subprocess.run([sys.executable, "-c", PROGRAMS[number]], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_programs() -> None:
    assert len(PROGRAMS) == 2
