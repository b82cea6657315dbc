"""The exported folder runs in onnxruntime-genai, with the same greedy tokens and the same ids of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcli.errors import MmcliError
from mmcli.export import genai as target
from mmcli.export.locate import Dtype, Ops
from mmcli.export.onnx_export import export_onnx
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_engine import OnnxEngine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.train import train_tokenizer

genai = pytest.importorskip("onnxruntime_genai", reason="an optional extra: pip install onnxruntime-genai")
LINES = [
    "Hello, how are you today?",
    "The rain falls on the hills.",
    "你好，世界。今天天气很好。",
    "A cloud is water 12 345",
]
SIZES: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "max_seq_len": 128, "init_std": 0.15,
}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("fp32", {}), ("fp16", {}), ("int8", {}), ("int4", {}), ("fp32", {"qk_norm": True}), ("int4", {"use_moe": True})],
    ids=["fp32", "fp16", "int8", "int4", "qk-norm", "moe"],
)
def test_genai_writes_the_same_greedy_tokens(tmp_path: Path, dtype: Dtype, values: dict[str, Any]) -> None:
    tokenizer = train_tokenizer(LINES * 3, vocab_size=400)
    model = Transformer(ModelConfig(**SIZES, **values), seed=2)
    save_model(tmp_path / "model", model, model.config, tokenizer)
    folder = export_onnx(tmp_path / "model", tmp_path / "onnx", dtype=dtype, force=True).folder
    prompt = tokenizer.encode_text("The rain falls 今天 345")
    loaded = genai.Model(str(folder))
    assert list(genai.Tokenizer(loaded).encode("The rain falls 今天 345")) == prompt
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=len(prompt) + 64, do_sample=False)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    engine: Engine = TorchEngine(model) if dtype == "fp32" else OnnxEngine.load(folder)
    logits_V = engine.prefill(0, prompt)
    expected: list[int] = []
    for _ in range(len(found)):
        expected.append(int(logits_V.argmax()))
        logits_V = engine.decode([0], expected[-1:])[0]
    assert found == expected and len(set(found)) > 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = Transformer(ModelConfig(**SIZES), seed=2)
    save_model(tmp_path / "model", model, model.config, train_tokenizer(LINES * 3, vocab_size=400))
    return tmp_path / "model"


@pytest.mark.parametrize("ops", ["fused", "standard"])
def test_the_target_is_verified_in_genai(ops: Ops, source: Path, tmp_path: Path) -> None:
    """Standard operators too: the cache grows there."""
    out = export_onnx(source, tmp_path / "out", target="genai", ops=ops).folder
    assert (out / "genai_config.json").is_file()


def test_an_export_that_genai_runs_otherwise_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = target._greedy
    monkeypatch.setattr(target, "_greedy", lambda *arguments: [each + 1 for each in greedy(*arguments)])
    with pytest.raises(MmcliError, match="onnxruntime-genai writes another greedy token than mmcli, at 1 of"):
        export_onnx(source, tmp_path / "out", target="genai")
    assert not (tmp_path / "out").exists()
