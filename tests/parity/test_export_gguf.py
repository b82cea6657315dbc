"""GGUF exports in llama.cpp (the package xllamacpp): the tokens, the template and the greedy replies of torch."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcli.data.demo.documents import documents
from mmcli.export.gguf import export_gguf
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.formats.hf_folder import save_model
from mmcli.model.transformer import Transformer
from mmcli.text.chat import encode_chat
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs: pip install xllamacpp")
SIZES: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 608, "hidden_dim": 96, "max_seq_len": 256,
    "init_std": 0.25,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense, own head width, biases, untied": {"head_dim": 32, "bias": True, "tie_embeddings": False},
    "dense, linear": {"rope_scaling": "linear", "rope_factor": 2.0},
    "dense, yarn": {"rope_scaling": "yarn", "rope_factor": 4.0},
    "dense, llama 3": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_seq_len": 8192},
    "qk-norm": {"qk_norm": True},
    "experts": {"use_moe": True, "n_shared_experts": 0},
    "experts, qk-norm": {"use_moe": True, "n_shared_experts": 0, "qk_norm": True},
    "shared expert": {"use_moe": True},
    "two shared experts": {"use_moe": True, "n_shared_experts": 2, "n_routed_experts": 6, "num_experts_per_tok": 3},
}
PROMPT, REPLY = 40, 64  # tokens
TEXTS = [
    "Hello, how are you?  It's 12345 o'clock!\n\n\tYes",
    "don't  THEY'LL   x=3.14\r\n ok \n \n  \t\tend   ",
    "你好，世界。今天天气很好！１２３ 《红楼梦》",
    "🙂🏽👩‍👩‍👧 été naïve Ünïcödé — “quotes” … ½ Ⅳ ٣٤",
    "Привет, мир! Γειά σου Κόσμε. こんにちは世界 안녕하세요 สวัสดี नमस्ते דער שלום",
    "def f(x):\n    return x**2  # 100_000\n\n\n",
    "a\u00a0b\u3000c\u2009d\u200be\ufefff a\u0301 \x00\x1f",
    " leading", "trailing ", "\n", " ", "a" * 300, "12" * 50, "!?…" * 20,
]  # fmt: skip


@contextlib.contextmanager
def llama_cpp(path: Path) -> Iterator[Any]:
    """ask(place, **body): an answer of llama.cpp's server with this model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers = 256, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity, params.use_jinja = -1, True
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # it would round them to f16
    server = xllamacpp.Server(params)

    def ask(place: str, **body: Any) -> Any:
        request = urllib.request.Request(f"{server.listening_address}{place}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    yield ask


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [text for text, _ in zip(documents(0), range(200), strict=False)]
    return train_tokenizer([*texts, *TEXTS], vocab_size=600, pretokenizer=request.param)


def make(folder: Path, tokenizer: Tokenizer, **values: Any) -> Path:
    model = Transformer(ModelConfig(**{**SIZES, **values}), seed=1)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_model(folder, model, model.config, tokenizer)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_greedy_tokens_of_torch(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.definition.tokenizer["pre_tokenizer"]["type"] != "Sequence":
        pytest.skip("once is enough")
    source = make(tmp_path / "model", tokenizer, **KINDS[kind])
    made = export_gguf(source, tmp_path / "m.gguf", dtype="f32")
    prompt = torch.randint(40, 600, (PROMPT,), generator=torch.Generator().manual_seed(2)).tolist()
    engine = TorchEngine.load(source, max_len=PROMPT + REPLY)
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    ours = list(generate(engine, 0, prompt, sampling, max_new_tokens=REPLY))
    with llama_cpp(made.path) as ask:
        reply = ask(
            "/completion", prompt=prompt, n_predict=REPLY, temperature=0.0, top_k=1, ignore_eos=False,
            return_tokens=True, cache_prompt=False, repeat_penalty=1.0,
        )  # fmt: skip
    assert len(set(ours)) > 8  # no loop of a few tokens
    assert reply["tokens"] == ours


def test_texts_and_conversations_have_the_same_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = export_gguf(make(tmp_path / "model", tokenizer), tmp_path / "m.gguf", dtype="q8_0")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a cloud? 你好"},
        {"role": "assistant", "content": "Water."},
        {"role": "user", "content": "  Thanks 🙂"},
    ]
    with llama_cpp(made.path) as ask:
        for text in TEXTS:
            assert ask("/tokenize", content=text)["tokens"] == tokenizer.encode_text(text), text
        rendered = ask("/apply-template", messages=messages)["prompt"]
        found = ask("/tokenize", content=rendered, parse_special=True)["tokens"]
    assert found == encode_chat(tokenizer, messages, add_generation_prompt=True).ids
