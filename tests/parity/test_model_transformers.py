"""Our model against the implementations of transformers: logits, loss, gradients, and files both ways."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import models as hf

from mmcli.model.attention import AttnContext
from mmcli.model.formats.hf_folder import load_model, save_model
from mmcli.model.logps import token_logps
from mmcli.model.transformer import Transformer

V, T = 61, 24
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {
    **SHAPE,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
MOE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.1}


def rope(kind: str, **values: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
CONFIGS = {
    "llama": lambda: hf.llama.LlamaConfig(**GATED),
    "llama tied, biases, wide heads": lambda: hf.llama.LlamaConfig(
        **GATED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12
    ),
    "llama linear": lambda: hf.llama.LlamaConfig(**GATED, **rope("linear", factor=3.0)),
    "llama yarn": lambda: hf.llama.LlamaConfig(**GATED, **YARN),
    "llama 3": lambda: hf.llama.LlamaConfig(
        **{**GATED, "head_dim": 64},
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024),
    ),
    "mistral window": lambda: hf.mistral.MistralConfig(**GATED, sliding_window=5),
    "qwen3": lambda: hf.qwen3.Qwen3Config(**GATED, head_dim=16),
    "qwen3 yarn, window": lambda: hf.qwen3.Qwen3Config(
        **GATED, head_dim=16, **YARN, use_sliding_window=True, sliding_window=7, max_window_layers=0
    ),
    "qwen3 moe": lambda: hf.qwen3_moe.Qwen3MoeConfig(
        **GATED, **MOE, head_dim=8, num_experts=4, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "qwen3 moe, raw weights": lambda: hf.qwen3_moe.Qwen3MoeConfig(
        **GATED, **MOE, head_dim=8, num_experts=5, moe_intermediate_size=24, norm_topk_prob=False
    ),
    "mixtral": lambda: hf.mixtral.MixtralConfig(**GATED, **MOE, num_local_experts=4),
    "gpt2": lambda: hf.gpt2.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
    "phi": lambda: hf.phi.PhiConfig(
        **SHAPE, intermediate_size=48, partial_rotary_factor=0.5, bos_token_id=0, eos_token_id=1
    ),
}


class Ids:
    """What `save_model` asks of a tokenizer."""

    bos_id, eos_id, pad_id = 0, 1, 1

    chat_template = None
    definition = SimpleNamespace(more_eos_ids=())

    def control_id(self, token: str) -> int | None:
        return None

    def control_token(self, id: int | None) -> str | None:
        return None

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def reference(kind: str) -> PreTrainedModel:
    config = CONFIGS[kind]()
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms too, so that none can be left out unseen
            parameter.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Transformer]:
    theirs = reference(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


def ids_and_context() -> tuple[torch.Tensor, AttnContext]:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(1)), AttnContext.causal(2, T)


def test_logits_are_those_of_transformers(pair: tuple[PreTrainedModel, Transformer]) -> None:
    theirs, ours = pair
    ids, ctx = ids_and_context()
    with torch.no_grad():
        expected, logits = theirs(ids).logits, ours.head(ours(ids, ctx)[0])
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_those_of_transformers(pair: tuple[PreTrainedModel, Transformer]) -> None:
    theirs, ours = pair
    ids, ctx = ids_and_context()
    theirs.zero_grad()
    ours.zero_grad()
    expected = theirs(ids, labels=ids).loss
    expected.backward()
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    hidden, _ = ours(ids, ctx)
    loss = -token_logps(hidden, ours.head_weight, labels, bias=ours.head_bias).sum() / (2 * (T - 1))
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    wanted = {name: each.grad for name, each in theirs.named_parameters()}
    found = in_their_form({name: each.grad for name, each in ours.named_parameters()}, theirs.config.model_type)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


GPT2_NAMES = {
    "model.layers": "transformer.h",
    "model.norm": "transformer.ln_f",
    "model.embed_tokens": "transformer.wte",
    "model.embed_positions": "transformer.wpe",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "up_proj": "c_fc",
    "down_proj": "c_proj",
}
PHI_NAMES = {"o_proj": "dense", "up_proj": "fc1", "down_proj": "fc2", "model.norm": "model.final_layernorm"}


def in_their_form(grads: dict[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """Our gradients as a transformers model has its own in memory, written out apart from our own mapping."""
    out: dict[str, torch.Tensor] = {}
    for name, grad in grads.items():
        if name.endswith("experts.up_proj") or (model_type == "gpt2" and ("k_proj" in name or "v_proj" in name)):
            continue  # joined to the one before
        if name.endswith("experts.gate_proj"):
            name, grad = name.replace("gate_", "gate_up_"), torch.cat((grad, grads[name.replace("gate", "up")]), dim=1)
        if model_type == "gpt2" and "q_proj" in name:
            grad = torch.cat([grads[name.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")])
        if model_type == "gpt2" and name.endswith("proj.weight"):
            grad = grad.t()
        for ours, theirs in {"gpt2": GPT2_NAMES, "phi": PHI_NAMES}.get(model_type, {}).items():
            name = name.replace(ours, theirs)
        out[name] = grad
    return out


def test_a_saved_folder_loads_unchanged_in_transformers(
    pair: tuple[PreTrainedModel, Transformer], tmp_path: Path
) -> None:
    theirs, ours = pair
    save_model(tmp_path, ours, ours.config, Ids())
    document = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(model) is type(theirs) and document["model_type"] == theirs.config.model_type
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids, ctx = ids_and_context()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours.head(ours(ids, ctx)[0]), atol=1e-5, rtol=1e-5)
    again = load_model(tmp_path)
    assert again.config == dataclasses.replace(ours.config)
    for (name, before), (_, after) in zip(ours.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(before, after), name
