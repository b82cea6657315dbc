"""The Hugging Face families, each as a table: which of its fields say what, and what it always is. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mmcli.model.config import ModelConfig

REQUIRED = object()
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}  # ours -> Hugging Face, for the ungated FFN


@dataclass(frozen=True)
class Family:
    """One `model_type`: `fields` maps its names to (ModelConfig attribute, its default when absent)."""

    model_type: str
    architecture: str
    fields: dict[str, tuple[str, Any]]
    implied: dict[str, Any]  # ModelConfig fields that every model of the family has
    fixed: dict[str, Any]  # its fields that mmcli writes, and reads, with this value only
    rope_theta: float = 10000.0  # its default

    def can_say(self, config: ModelConfig) -> bool:
        return all(getattr(config, name) == value for name, value in self.implied.items())


GATED: dict[str, Any] = {
    "norm": "rmsnorm", "position": "rope", "rotary_fraction": 1.0, "mlp": "swiglu",
    "head_bias": False, "parallel_block": False,
}  # fmt: skip
DENSE = {**GATED, "use_moe": False}
ROUTED = {**GATED, "use_moe": True, "n_shared": 0, "scoring_func": "softmax", "bias": False}


def _standard(eps: float, **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    """The names that the Llama-like families share."""
    return {
        "vocab_size": ("vocab_size", REQUIRED),
        "hidden_size": ("dim", REQUIRED),
        "intermediate_size": ("ffn_dim", REQUIRED),
        "num_hidden_layers": ("n_layers", REQUIRED),
        "num_attention_heads": ("n_heads", REQUIRED),
        "num_key_value_heads": ("n_kv_heads", None),
        "head_dim": ("d_head", None),
        "max_position_embeddings": ("max_seq_len", REQUIRED),
        "rms_norm_eps": ("norm_eps", eps),
        "tie_word_embeddings": ("tie_embeddings", False),
        "initializer_range": ("init_std", 0.02),
        **more,
    }


def _without(fields: dict[str, tuple[str, Any]], *names: str) -> dict[str, tuple[str, Any]]:
    return {name: field for name, field in fields.items() if name not in names}


SILU = {"hidden_act": "silu"}
LLAMA = Family(
    "llama", "LlamaForCausalLM",
    _standard(1e-6, attention_bias=("bias", False), mlp_bias=("bias", False)),
    {**DENSE, "qk_norm": False, "sliding_window": None}, SILU,
)  # fmt: skip
MISTRAL = Family(
    "mistral", "MistralForCausalLM",
    _standard(1e-6, sliding_window=("sliding_window", 4096)),
    {**DENSE, "qk_norm": False, "bias": False}, SILU,
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", _standard(1e-6, head_dim=("d_head", 128)),
    {**DENSE, "qk_norm": True, "bias": False}, {**SILU, "attention_bias": False},
)  # fmt: skip
QWEN3_MOE = Family(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    _without(
        _standard(
            1e-6,
            moe_intermediate_size=("ffn_dim", REQUIRED),
            num_experts=("n_routed_experts", REQUIRED),
            num_experts_per_tok=("num_experts_per_tok", REQUIRED),
            norm_topk_prob=("norm_topk_prob", False),
            router_aux_loss_coef=("aux_loss_alpha", 0.001),
        ),
        "intermediate_size",
    ),
    {**ROUTED, "qk_norm": True},
    {**SILU, "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
)  # fmt: skip
MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM",
    _standard(
        1e-5,
        sliding_window=("sliding_window", None),
        num_local_experts=("n_routed_experts", REQUIRED),
        num_experts_per_tok=("num_experts_per_tok", REQUIRED),
        router_aux_loss_coef=("aux_loss_alpha", 0.001),
    ),
    {**ROUTED, "qk_norm": False, "norm_topk_prob": True}, SILU, rope_theta=1e6,
)  # fmt: skip
GPT2 = Family(
    "gpt2", "GPT2LMHeadModel",
    {
        "vocab_size": ("vocab_size", REQUIRED), "n_embd": ("dim", REQUIRED), "n_layer": ("n_layers", REQUIRED),
        "n_head": ("n_heads", REQUIRED), "n_inner": ("ffn_dim", None), "n_positions": ("max_seq_len", REQUIRED),
        "layer_norm_epsilon": ("norm_eps", 1e-5), "tie_word_embeddings": ("tie_embeddings", True),
        "initializer_range": ("init_std", 0.02),
    },
    {
        "norm": "layernorm", "position": "learned", "bias": True, "head_bias": False, "parallel_block": False,
        "use_moe": False, "qk_norm": False, "sliding_window": None, "gated": False,
    },
    {
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
)  # fmt: skip
PHI = Family(
    "phi", "PhiForCausalLM",
    _without(_standard(1e-5, layer_norm_eps=("norm_eps", 1e-5)), "rms_norm_eps", "head_dim"),
    {
        "norm": "layernorm", "position": "rope", "bias": True, "head_bias": True, "parallel_block": True,
        "use_moe": False, "qk_norm": False, "sliding_window": None, "gated": False,
    },
    {"qk_layernorm": False},
)  # fmt: skip
# MiniMind2 as released from 2025-04: no transformers class; MiniMind's own code reads these names.
MINIMIND = Family(
    "minimind", "MiniMindForCausalLM",
    _without(
        _standard(
            1e-5,
            intermediate_size=("ffn_dim", None),
            tie_word_embeddings=("tie_embeddings", True),
            dropout=("dropout", 0.0), flash_attn=("flash_attn", True), use_moe=("use_moe", False),
            num_experts_per_tok=("num_experts_per_tok", 2), n_routed_experts=("n_routed_experts", 4),
            n_shared_experts=("n_shared_experts", 1), scoring_func=("scoring_func", "softmax"),
            aux_loss_alpha=("aux_loss_alpha", 0.1), seq_aux=("seq_aux", True), norm_topk_prob=("norm_topk_prob", True),
        ),
        "head_dim",
    ),
    {**GATED, "qk_norm": False, "bias": False, "sliding_window": None, "rope_scaling": "none"},
    {**SILU, "inference_rope_scaling": False}, rope_theta=1e6,
)  # fmt: skip
# The release of 2025-02 has ModelConfig's own names.
MINIMIND_FIRST = dataclasses.replace(
    MINIMIND,
    fields={
        name: (name, getattr(ModelConfig(), name))
        for name in (
            "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "hidden_dim", "multiple_of", "norm_eps",
            "max_seq_len", "dropout", "flash_attn", "use_moe", "num_experts_per_tok", "n_routed_experts",
            "n_shared_experts", "scoring_func", "aux_loss_alpha", "seq_aux", "norm_topk_prob",
        )
    },
    fixed={},
)  # fmt: skip
# minimind-3 (2026-03): qk-norm in every model, top-1 routing without shared experts.
MINIMIND_3 = dataclasses.replace(
    MINIMIND,
    fields=_standard(
        1e-6,
        tie_word_embeddings=("tie_embeddings", True), dropout=("dropout", 0.0), flash_attn=("flash_attn", True),
        use_moe=("use_moe", False), num_experts=("n_routed_experts", 4),
        num_experts_per_tok=("num_experts_per_tok", 1), norm_topk_prob=("norm_topk_prob", True),
        router_aux_loss_coef=("aux_loss_alpha", 5e-4),
    ),
    implied={**MINIMIND.implied, "qk_norm": True, "n_shared_experts": 0},
)  # fmt: skip
# What no other family can say: only mmcli reads it, from its own key.
OWN = Family("mmcli", "MmcliForCausalLM", _standard(1e-5), {}, {})
READABLE = (LLAMA, MISTRAL, QWEN3, QWEN3_MOE, MIXTRAL, GPT2, PHI, MINIMIND)  # in order of preference for writing


def hf_family(config: ModelConfig) -> str:
    """The `model_type` that `config` is written as: llama, mistral (sliding window), qwen3 (qk-norm), qwen3_moe,
    mixtral, gpt2, phi, minimind (shared experts), or `mmcli` where none of these can say it."""
    return family_of(config).model_type


def family_of(config: ModelConfig) -> Family:
    whole_heads = config.d_head * config.n_heads == config.dim
    for family in READABLE:
        if not family.can_say(config):
            continue
        if family is LLAMA and config.dim % config.n_heads:
            continue  # its validation wants whole heads even where head_dim is given; Mistral has no such rule
        if family in (GPT2, PHI, MINIMIND) and not whole_heads:
            continue
        if family is GPT2 and config.n_kv_heads != config.n_heads:
            continue
        if family is MINIMIND and config.use_moe and config.num_experts_per_tok == 1 and config.norm_topk_prob:
            continue  # MiniMind2's code does not renormalise a single expert's weight
        return family
    return OWN
