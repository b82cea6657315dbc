"""`export_gguf`: import(export(m)) is m, types round as they may, and what llama.cpp cannot run is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf as library
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmcli.errors import MmcliError, UserError
from mmcli.export import gguf
from mmcli.export.gguf import export_gguf
from mmcli.export.modelfile import MARK
from mmcli.model.formats.gguf_model import open_gguf
from mmcli.model.formats.hf_folder import load_model
from mmcli.model.formats.read import read_model
from mmcli.text.chat import stop_ids
from mmcli.text.tokenizer import Tokenizer

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama", {}),
    "dense, own head width, biases": ("llama", {"head_dim": 24, "bias": True, "tie_embeddings": False}),
    "dense, yarn": ("llama", {"rope_scaling": "yarn", "rope_factor": 4.0}),
    "dense, llama 3": ("llama", {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_seq_len": 8192}),
    "qk-norm": ("qwen3", {"qk_norm": True}),
    "experts": ("llama", {"use_moe": True, "n_shared_experts": 0}),
    "experts, qk-norm": ("qwen3moe", {"use_moe": True, "n_shared_experts": 0, "qk_norm": True}),
    "shared expert": ("granitemoe", {"use_moe": True}),
    "two shared experts": ("granitemoe", {"use_moe": True, "n_shared_experts": 2, "n_routed_experts": 6}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_import_of_an_export_is_the_model(kind: str, save: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    architecture, values = KINDS[kind]
    source = save(**values)
    made = export_gguf(source, tmp_path / "out" / "m.gguf", dtype="f32")
    assert made.architecture == architecture and made.perplexity_rise == 0.0 and made.round_trips == 9
    before, found = load_model(source), read_model(made.path)
    assert list(found.model.state_dict()) == list(before.state_dict())
    for name, tensor in before.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    for field in (
        "n_heads",
        "n_kv_heads",
        "d_head",
        "norm_eps",
        "rope_theta",
        "rope_scaling",
        "n_shared",
        "max_seq_len",
    ):
        assert getattr(found.model.config, field) == getattr(before.config, field), field
    back = found.tokenizer
    assert (back.bos_id, back.eos_id, back.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert stop_ids(back) == stop_ids(tokenizer) and back.control_tokens == tokenizer.control_tokens
    assert back.chat_template == tokenizer.chat_template


ROUNDS: dict[str, tuple[float, float]] = {  # dtype: (bytes a number at most, greatest relative error)
    "f16": (2.3, 2**-11), "bf16": (2.3, 2**-8), "q8_0": (1.4, 0.005), "q4_0": (1.0, 0.13),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ROUNDS)
def test_a_smaller_type_is_written_and_measured(dtype: Any, save: Any, tmp_path: Path) -> None:
    source = save(use_moe=True, n_kv_heads=4, vocab_size=1600)
    made = export_gguf(source, tmp_path / "m.gguf", dtype=dtype)
    before, after = load_model(source), read_model(made.path).model
    numbers = sum(each.numel() for each in before.parameters())
    width, error = ROUNDS[dtype]
    assert made.bytes - 70_000 < numbers * width  # of the tokenizer
    assert made.perplexity_rise != 0.0
    same = 0
    for name, tensor in before.state_dict().items():
        found = after.state_dict()[name]
        assert (found - tensor).abs().max() <= tensor.abs().max() * error, name
        same += torch.equal(found, tensor)
    assert same == made.tensors["f32"] == 7  # five norms and two routers
    head = {each.name: each.tensor_type.name for each in library.GGUFReader(made.path).tensors}["token_embd.weight"]
    assert head == {"q4_0": "Q8_0"}.get(dtype, dtype.upper())


def test_rows_that_are_no_blocks_are_f16(save: Any, tmp_path: Path) -> None:
    made = export_gguf(save(hidden_dim=90), tmp_path / "m.gguf", dtype="q8_0")
    assert made.tensors["f16"] == 2  # down_proj of both layers
    kinds = {each.name: each.tensor_type.name for each in library.GGUFReader(made.path).tensors}
    assert kinds["blk.1.ffn_down.weight"] == "F16" and kinds["blk.1.ffn_up.weight"] == "Q8_0"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (
        {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True, "n_kv_heads": 4},
        "model.norm = layernorm, model.position = learned, model.mlp = gelu_tanh",
    ),
    "sliding window": ({"sliding_window": 4}, "the nearest, llama, differs in: model.sliding_window = 4"),
    "qk-norm and shared": ({"use_moe": True, "qk_norm": True}, "granitemoe, differs in: model.qk_norm = True"),
    "as scored": ({"use_moe": True, "norm_topk_prob": False}, "granitemoe, differs in: model.norm_topk_prob = False"),
    "sigmoid": ({"use_moe": True, "scoring_func": "sigmoid"}, "differs in: model.scoring_func = sigmoid"),
    "llama 3 from 64": (
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_seq_len": 64},
        "model.rope_original_seq_len = 64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_architecture_can_say_is_refused_by_field(case: str, save: Any, tmp_path: Path) -> None:
    values, says = REFUSED[case]
    with pytest.raises(UserError) as refused:
        export_gguf(save(**values), tmp_path / "m.gguf")
    assert says in refused.value.what and "\n" not in refused.value.what and refused.value.fix
    assert not (tmp_path / "m.gguf").exists()


def test_what_f16_cannot_hold_is_refused(save: Any, tmp_path: Path) -> None:
    source = save(tie_embeddings=False)
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"][410, 3] = 1e5  # of an id that no text has
    (source / "manifest.json").unlink(missing_ok=True)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UserError, match=r"token_embd\.weight has values that f16 cannot hold"):
        export_gguf(source, tmp_path / "m.gguf", dtype="f16")
    assert export_gguf(source, tmp_path / "m.gguf", dtype="bf16").dtype == "bf16"


def test_only_an_earlier_export_is_replaced(save: Any, tmp_path: Path) -> None:
    source, path = save(), tmp_path / "m.gguf"
    export_gguf(source, path, dtype="f32")
    assert export_gguf(source, path, dtype="q8_0").bytes == path.stat().st_size
    library.GGUFWriter(path, "llama").write_header_to_file()  # somebody else's, and not whole
    for content in (path.read_bytes(), b"GGUF", b"years of work"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"m\.gguf exists and is not an export"):
            export_gguf(source, path)
        assert path.read_bytes() == content
    with pytest.raises(UserError, match=r"does not end in \.gguf"):
        export_gguf(source, tmp_path)


def test_the_modelfile(save: Any, tmp_path: Path) -> None:
    made = export_gguf(save(), tmp_path / "m.gguf")
    lines = made.modelfile.read_text().splitlines()
    assert lines[:2] == [f"{MARK}: ollama create NAME -f m.Modelfile", "FROM ./m.gguf"]
    assert 'PARAMETER stop "<|im_end|>"' in lines and "PARAMETER num_ctx 96" in lines
    assert any(line.startswith('TEMPLATE """') for line in lines)
    made.modelfile.write_text("FROM ./m.gguf\nSYSTEM You are a pirate.\n")
    export_gguf(save(seed=2), tmp_path / "m.gguf")
    assert "pirate" in made.modelfile.read_text()


@pytest.mark.parametrize("broken", ["tensor", "field", "tokens"])
def test_an_export_that_reads_back_otherwise_is_not_kept(
    broken: str, save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = gguf._write

    def wrong(path: Path, architecture: str, fields: Any, tensors: Any, types: Any) -> None:
        if broken == "tensor":
            tensors = {**tensors, "blk.1.ffn_up.weight": tensors["blk.1.ffn_up.weight"] * 1.02}
        elif broken == "field":
            fields = {**fields, "llama.rope.freq_base": 77.0}
        else:
            tokens = list(fields["tokenizer.ggml.tokens"])
            tokens[300:302] = tokens[301:299:-1]
            fields = {**fields, "tokenizer.ggml.tokens": tokens}
        store(path, architecture, fields, tensors, types)

    monkeypatch.setattr(gguf, "_write", wrong)
    message = {
        "tensor": r"blk\.1\.ffn_up\.weight reads back as other numbers",
        "field": r"llama\.rope\.freq_base reads back as 77\.0",
        "tokens": "exported tokenizer",
    }
    with pytest.raises(MmcliError, match=message[broken]):
        export_gguf(save(), tmp_path / "m.gguf", dtype="q8_0")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_rise_of_perplexity_is_refused(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf.PERPLEXITY_LIMITS, "q4_0", -0.5)
    with pytest.raises(MmcliError, match=r"nats a token in q4_0 \(perplexity may rise by") as refused:
        export_gguf(save(), tmp_path / "m.gguf", dtype="q4_0")
    assert refused.value.fix.endswith("--dtype q8_0") and not (tmp_path / "m.gguf").exists()


def test_the_package_that_is_missing_is_named(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf") as refused:
        export_gguf(save(), tmp_path / "m.gguf")
    assert "mmcli[gguf]" in refused.value.fix


def test_a_pre_tokenizer_that_llama_cpp_does_not_know_is_refused(save: Any, tmp_path: Path) -> None:
    source = save()
    text = (source / "tokenizer.json").read_text()
    (source / "manifest.json").unlink(missing_ok=True)
    assert text.count(r"|\\p{N}|") == 1
    (source / "tokenizer.json").write_text(text.replace(r"|\\p{N}|", r"|\\p{N}{1,2}|"))
    with pytest.raises(UserError, match=r"in a way that llama\.cpp has no name for"):
        export_gguf(source, tmp_path / "m.gguf")


def test_padding_of_the_embedding_is_unused_tokens(save: Any, tmp_path: Path) -> None:
    fields = open_gguf(export_gguf(save(), tmp_path / "m.gguf").path).fields
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 416 and tokens[400:402] == ["[PAD400]", "[PAD401]"]
    assert kinds[0] == 3 and kinds[3] == 4 and set(kinds[400:]) == {5}
