"""The Hugging Face families, each as a table: its keys in config.json, and the names of its tensors. No torch here.

To add a family: a `Family` here, and in `READABLE`. A test checks that it classifies every ModelConfig field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmcli.model.config import ModelConfig
from mmcli.model.formats.fields import (
    ROTARY,
    ROUTING,
    TRAINING,
    Constant,
    FieldTable,
    Implied,
    Irrelevant,
    Key,
    Rule,
    Source,
    WrittenOnly,
)
from mmcli.model.formats.hf_rules import (
    Activation,
    AttentionMultiplier,
    Dropouts,
    EqualHeads,
    ExpertWidth,
    HeadDim,
    KeyValueHeads,
    Rope,
    SharedExperts,
    SharedWidth,
    SwitchedWindow,
    TopkNorm,
    WholeHeads,
)
from mmcli.model.formats.names import Layout, NameTable, Stored

LLAMA_LAYOUT = Layout(NameTable(()))  # ours


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str  # transformers' class
    table: FieldTable[Source]
    layout: Layout

    def unsupported(self, config: ModelConfig) -> list[str]:
        """The ModelConfig fields that keep `config` from this family, by name; empty if it holds all of it."""
        return self.table.unsupported(config)


def _family(model_type: str, architecture: str, *rules: Rule[Source], layout: Layout = LLAMA_LAYOUT) -> Family:
    return Family(model_type, architecture, FieldTable(rules), layout)


def _sizes(
    width: Key | None, *heads: Rule[Source], eps: tuple[str, float] | None, tied: bool = False
) -> tuple[Rule[Source], ...]:
    """The keys that the Llama-like families share; `width` is that of the FFN, `eps` the key of the norms' epsilon."""
    ffn: tuple[Rule[Source], ...] = () if width is None else (width,)
    norm: tuple[Rule[Source], ...] = () if eps is None else (Key("norm_eps", eps[0], default=eps[1]),)
    return (
        Key("vocab_size"), Key("dim", "hidden_size"), *ffn, Key("n_layers", "num_hidden_layers"),
        Key("n_heads", "num_attention_heads"), KeyValueHeads("num_key_value_heads"), *heads,
        Key("max_seq_len", "max_position_embeddings"), *norm,
        Key("tie_embeddings", "tie_word_embeddings", default=tied), Key("init_std", "initializer_range", default=0.02),
    )  # fmt: skip


def _without(fields: tuple[str, ...], *said: str) -> Irrelevant:
    """Fields that do not matter, but for those that the family has a rule for."""
    return Irrelevant(*(field for field in fields if field not in said))


RMS = "rms_norm_eps"
WIDTH = Key("hidden_dim", "intermediate_size", attribute="ffn_dim")
SILU = Constant(hidden_act="silu")
ATTENTION_DROPOUT = WrittenOnly("attention_dropout", "dropout")
GATED = Implied(
    norm="rmsnorm", position="rope", rotary_fraction=1.0, mlp="swiglu", head_bias=False, parallel_block=False
)
LAYERNORM = Implied(norm="layernorm", bias=True, use_moe=False, qk_norm=False, sliding_window=None)
DENSE = (Implied(use_moe=False), _without(("multiple_of", *TRAINING, *ROUTING), "init_std"))
ROUTED = (
    Implied(use_moe=True, n_shared_experts=0, scoring_func="softmax", bias=False),
    _without(("multiple_of", *TRAINING), "init_std", "aux_loss_alpha"),
)
EXPERTS_CHOSEN = Key("num_experts_per_tok")
AUX_LOSS = Key("aux_loss_alpha", "router_aux_loss_coef", default=0.001)

LLAMA = _family(
    "llama", "LlamaForCausalLM",
    *_sizes(WIDTH, HeadDim(divides=True), eps=(RMS, 1e-6)),
    Key("bias", "attention_bias", "mlp_bias", default=False),
    SILU, Rope(), ATTENTION_DROPOUT, GATED, *DENSE, Implied(qk_norm=False, sliding_window=None),
)  # fmt: skip
MISTRAL = _family(
    "mistral", "MistralForCausalLM",
    *_sizes(WIDTH, HeadDim(), eps=(RMS, 1e-6)), Key("sliding_window", default=4096, null=None),
    SILU, Rope(), ATTENTION_DROPOUT, GATED, *DENSE, Implied(qk_norm=False, bias=False),
)  # fmt: skip
QWEN3 = _family(
    "qwen3", "Qwen3ForCausalLM",
    *_sizes(WIDTH, HeadDim(default=128), eps=(RMS, 1e-6)), SILU, Constant(attention_bias=False),
    Rope(), ATTENTION_DROPOUT, SwitchedWindow(by_layer=True), GATED, *DENSE, Implied(qk_norm=True, bias=False),
)  # fmt: skip
QWEN3_MOE = _family(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    *_sizes(None, HeadDim(), eps=(RMS, 1e-6)),
    Key("hidden_dim", "moe_intermediate_size", attribute="ffn_dim"),
    Key("n_routed_experts", "num_experts", also_read=("num_local_experts",)),  # as transformers 5 writes it
    EXPERTS_CHOSEN, Key("norm_topk_prob", default=False), AUX_LOSS,
    SILU, Constant(attention_bias=False, decoder_sparse_step=1, mlp_only_layers=[]),
    Rope(), ATTENTION_DROPOUT, SwitchedWindow(by_layer=False), WrittenOnly("intermediate_size", "ffn_dim"),
    GATED, *ROUTED, Implied(qk_norm=True),
)  # fmt: skip
MIXTRAL = _family(
    "mixtral", "MixtralForCausalLM",
    *_sizes(WIDTH, HeadDim(), eps=(RMS, 1e-5)),
    Key("sliding_window", default=None, null=None), Key("n_routed_experts", "num_local_experts"), EXPERTS_CHOSEN,
    AUX_LOSS, SILU, Rope(1e6), ATTENTION_DROPOUT, GATED, *ROUTED, Implied(qk_norm=False, norm_topk_prob=True),
    layout=Layout(NameTable((
        ("model.layers.{}.mlp.gate", "model.layers.{}.block_sparse_moe.gate"),
        ("model.layers.{}.mlp.experts.{}.gate_proj", "model.layers.{}.block_sparse_moe.experts.{}.w1"),
        ("model.layers.{}.mlp.experts.{}.down_proj", "model.layers.{}.block_sparse_moe.experts.{}.w2"),
        ("model.layers.{}.mlp.experts.{}.up_proj", "model.layers.{}.block_sparse_moe.experts.{}.w3"),
    ))),
)  # fmt: skip
GPT2 = _family(
    "gpt2", "GPT2LMHeadModel",
    Key("vocab_size"), Key("dim", "n_embd"), Key("n_layers", "n_layer"), Key("n_heads", "n_head"), EqualHeads(),
    Key("hidden_dim", "n_inner", default=None, attribute="ffn_dim"), Key("max_seq_len", "n_positions"),
    Key("norm_eps", "layer_norm_epsilon", default=1e-5),
    Key("tie_embeddings", "tie_word_embeddings", default=True), Key("init_std", "initializer_range", default=0.02),
    Constant(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    Dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop", default=0.1), Activation("activation_function"),
    LAYERNORM, Implied(position="learned", head_bias=False, parallel_block=False), WholeHeads(),
    _without(("multiple_of", *TRAINING, *ROUTING, *ROTARY), "dropout", "init_std"),
    layout=Layout(NameTable((
        ("model.embed_tokens", "transformer.wte"),
        ("model.embed_positions", "transformer.wpe"),
        ("model.norm", "transformer.ln_f"),
        ("model.layers.{}.input_layernorm", "transformer.h.{}.ln_1"),
        ("model.layers.{}.post_attention_layernorm", "transformer.h.{}.ln_2"),
        ("model.layers.{}.self_attn.q_proj", "transformer.h.{}.attn.c_attn"),  # with k and v joined to it
        ("model.layers.{}.self_attn.o_proj", "transformer.h.{}.attn.c_proj"),
        ("model.layers.{}.mlp.up_proj", "transformer.h.{}.mlp.c_fc"),
        ("model.layers.{}.mlp.down_proj", "transformer.h.{}.mlp.c_proj"),
    )), conv1d=True),
)  # fmt: skip
PHI = _family(
    "phi", "PhiForCausalLM",
    *_sizes(WIDTH, eps=None), Key("norm_eps", "layer_norm_eps", default=1e-5), Constant(qk_layernorm=False),
    Rope(partial=0.5), Dropouts("resid_pdrop", "embd_pdrop", "attention_dropout", default=0.0),
    Activation("hidden_act"), LAYERNORM, Implied(position="rope", head_bias=True, parallel_block=True), WholeHeads(),
    _without(("multiple_of", *TRAINING, *ROUTING), "dropout", "init_std"),
    layout=Layout(NameTable((
        ("model.norm", "model.final_layernorm"),
        ("model.layers.{}.self_attn.o_proj", "model.layers.{}.self_attn.dense"),
        ("model.layers.{}.mlp.up_proj", "model.layers.{}.mlp.fc1"),
        ("model.layers.{}.mlp.down_proj", "model.layers.{}.mlp.fc2"),
    ))),
)  # fmt: skip
# MiniMind2 as released from 2025-04: no transformers class; MiniMind's own code reads these names.
MINIMIND_ONLY = (Implied(qk_norm=False, bias=False, sliding_window=None), WholeHeads())
MINIMIND_ROPE = (Constant(inference_rope_scaling=False), Rope(1e6, scaled=False))
MINIMIND = _family(
    "minimind", "MiniMindForCausalLM",
    *_sizes(
        Key("hidden_dim", "intermediate_size", default=None, attribute="ffn_dim"), eps=(RMS, 1e-5), tied=True,
    ),
    Key("dropout", default=0.0), Key("flash_attn", default=True), Key("use_moe", default=False),
    Key("num_experts_per_tok", default=2), Key("n_routed_experts", default=4), SharedExperts(default=1),
    Key("scoring_func", default="softmax"), Key("aux_loss_alpha", default=0.1), Key("seq_aux", default=True),
    TopkNorm(), SILU, *MINIMIND_ROPE, GATED, *MINIMIND_ONLY, Irrelevant("multiple_of"),
)  # fmt: skip
# Granite's with every multiplier as if there were none: what transformers and llama.cpp run shared experts with.
GRANITE_MOE_SHARED = _family(
    "granitemoeshared", "GraniteMoeSharedForCausalLM",
    *_sizes(WIDTH, eps=(RMS, 1e-6)), WholeHeads(),
    Key("n_routed_experts", "num_local_experts"), EXPERTS_CHOSEN, SharedWidth(), AUX_LOSS,
    Constant(embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0), AttentionMultiplier(),
    SILU, Constant(attention_bias=False), Rope(), ATTENTION_DROPOUT, GATED,
    Implied(
        use_moe=True, scoring_func="softmax", norm_topk_prob=True, bias=False, qk_norm=False, sliding_window=None,
    ),
    _without(("multiple_of", *TRAINING), "init_std", "aux_loss_alpha"),
    layout=Layout(NameTable((
        ("model.layers.{}.mlp.gate", "model.layers.{}.block_sparse_moe.router.layer"),
        ("model.layers.{}.mlp.experts.gate_proj", "model.layers.{}.block_sparse_moe.input_linear"),  # with up_proj
        ("model.layers.{}.mlp.experts.down_proj", "model.layers.{}.block_sparse_moe.output_linear"),
        ("model.layers.{}.mlp.shared_experts.0.gate_proj", "model.layers.{}.shared_mlp.input_linear"),  # the same
        ("model.layers.{}.mlp.shared_experts.0.down_proj", "model.layers.{}.shared_mlp.output_linear"),
    )), experts="fused"),
)  # fmt: skip
# The release of 2025-02 has ModelConfig's own names. It is read, never written.
MINIMIND_FIRST = _family(
    "minimind", "MiniMindForCausalLM",
    *(
        Key(name, default=getattr(ModelConfig(), name))
        for name in (
            "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps", "max_seq_len",
            "dropout", "flash_attn", "use_moe", "num_experts_per_tok", "n_routed_experts", "scoring_func",
            "aux_loss_alpha", "seq_aux",
        )
    ),
    Key("hidden_dim", default=None), SharedExperts(default=True), TopkNorm(), Rope(1e6, scaled=False),
    GATED, *MINIMIND_ONLY, Implied(tie_embeddings=True), Irrelevant("init_std"),
)  # fmt: skip
# minimind-3 (2026-03): qk-norm in every model, top-1 routing without shared experts. It is read, never written.
MINIMIND_3 = _family(
    "minimind", "MiniMindForCausalLM",
    *_sizes(WIDTH, HeadDim(), eps=(RMS, 1e-6), tied=True),
    Key("dropout", default=0.0), Key("flash_attn", default=True), Key("use_moe", default=False),
    Key("n_routed_experts", "num_experts", default=4), Key("num_experts_per_tok", default=1),
    Key("norm_topk_prob", default=True), Key("aux_loss_alpha", "router_aux_loss_coef", default=5e-4), ExpertWidth(),
    SILU, *MINIMIND_ROPE, GATED,
    Implied(qk_norm=True, bias=False, sliding_window=None, n_shared_experts=0, scoring_func="softmax"),
    Irrelevant("multiple_of", "seq_aux"),
)  # fmt: skip
# For what no other family holds: only mmcli reads it, from its own key, which has every field.
OWN = _family("mmcli", "MmcliForCausalLM", *_sizes(WIDTH, HeadDim(), eps=(RMS, 1e-5)), Rope(), ATTENTION_DROPOUT)
READABLE = (  # in order of preference for writing
    LLAMA, MISTRAL, QWEN3, QWEN3_MOE, MIXTRAL, GPT2, PHI, MINIMIND, GRANITE_MOE_SHARED,
)  # fmt: skip
TRANSFORMERS = tuple(family for family in READABLE if family is not MINIMIND)  # those that transformers has


def hf_family(config: ModelConfig) -> str:
    """The `model_type` that `config` is written as: llama, mistral (sliding window), qwen3 (qk-norm), qwen3_moe,
    mixtral, gpt2, phi, minimind (shared experts), granitemoeshared (those that MiniMind cannot say), or `mmcli` where
    none of these can hold it."""
    return family_of(config).model_type


def family_of(config: ModelConfig) -> Family:
    """The first family whose table holds every field of `config`; `OWN` if none does."""
    return next((family for family in READABLE if not family.unsupported(config)), OWN)


def stored_names(names: Iterable[str], config: ModelConfig) -> list[Stored]:
    """The tensors of a run's model folder that hold the parameters `names`: what an adapter's file calls them.

    Where the family of `config` joins experts to one tensor, each expert has a name of its own here, which is ours.
    """
    layout = family_of(config).layout
    return (layout if layout.experts == "separate" else LLAMA_LAYOUT).place(names, config)


def written_as(config: ModelConfig) -> tuple[Family, ...]:
    """The families that folders of `config` are of: ours (first), exports for transformers and for MiniMind, and `OWN`
    of the time when no other held it."""
    exports = (*(each for each in TRANSFORMERS if not each.unsupported(config)), OWN)[:1]
    minimind = () if MINIMIND.unsupported(config) else (MINIMIND,)
    return (family_of(config), *exports, *minimind, OWN)
