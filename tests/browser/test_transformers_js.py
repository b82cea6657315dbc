"""`mmcli export onnx --target web` in transformers.js, run by Node on local files: the greedy tokens are torch's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmcli.export.locate import Dtype, graph_file
from mmcli.export.onnx_export import export_onnx
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.train import train_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODULES = Path(os.environ.get("MMCLI_NODE_MODULES", ROOT / "build" / "browser" / "node_modules"))
NODE = shutil.which("node")
LINES = ["Hello, how are you today?", "The rain falls on the hills.", "你好，世界。今天天气很好。"]
SIZE: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "max_seq_len": 256, "init_std": 0.15,
}  # fmt: skip
PROMPTS = ["The rain falls", "今天天气", "H"]
TOKENS = 32


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        *(("fp32", {}), ("fp16", {}), ("int8", {}), ("int4", {}), ("fp32", {"qk_norm": True})),
        ("fp32", {"use_moe": True, "qk_norm": True, "n_shared_experts": 0}),
    ],
    ids=["fp32", "fp16", "int8", "int4", "qwen3", "qwen3-moe"],
)
def test_transformers_js_writes_the_same_greedy_tokens(tmp_path: Path, dtype: Dtype, values: dict[str, Any]) -> None:
    if NODE is None or not (MODULES / "@huggingface" / "transformers").is_dir():
        pytest.skip(f"there is no Node, or no transformers.js in {MODULES}: make test-browser installs it")
    tokenizer, model = train_tokenizer(LINES * 3, vocab_size=400), Transformer(ModelConfig(**SIZE, **values), seed=2)
    save_model(tmp_path / "model", model, model.config, tokenizer)
    folder = export_onnx(tmp_path / "model", tmp_path / "web", dtype=dtype, target="web", force=True).folder
    prompts, messages = [tokenizer.encode_text(each) for each in PROMPTS], [{"role": "user", "content": "Hello 世界"}]
    asked = json.dumps({"prompts": prompts, "messages": messages, "tokens": TOKENS})
    command = [NODE, str(Path(__file__).with_name("transformers.mjs")), str(MODULES), str(folder)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["asked"] == encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    rounds = dtype in ("int8", "int4")
    engine: Engine = load_onnx_engine(folder, graph=graph_file(folder)) if rounds else TorchEngine(model)
    for prompt, found in zip(prompts, answer["written"], strict=True):
        assert found == greedy(engine, prompt, stop_ids(tokenizer))


def greedy(engine: Engine, prompt: list[int], stop: frozenset[int] | set[int]) -> list[int]:
    """Up to TOKENS ids, a stop token included."""
    engine.truncate(0, 0)
    logits_V, ids = engine.prefill(0, prompt), []
    while len(ids) < TOKENS:
        ids.append(int(logits_V.argmax()))
        if ids[-1] in stop:
            break
        logits_V = engine.decode([0], ids[-1:])[0]
    return ids
