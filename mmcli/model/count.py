"""Parameters, bytes and FLOPs of a model, from its config alone: no torch, no weights.

One list of tensors (`tensors`) is the source of every figure, so that they cannot disagree; a parity test compares
it with the transformer itself.

Letters: D width, H query heads, K key/value heads, d head features, F FFN width, V vocabulary, E experts, L layers,
T tokens in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mmcli.model.config import ModelConfig

COMPONENTS = (
    "embedding", "position", "attention", "ffn", "experts", "shared_experts", "router", "norms", "head",
)  # fmt: skip
QUANT_BLOCK = 32  # weights that share one scale
WeightType = Literal["fp32", "bf16", "int8", "int4"]


@dataclass(frozen=True)
class Tensors:
    """`copies` tensors of one shape, of which one token uses `active`."""

    component: str
    shape: tuple[int, ...]
    copies: int
    active: int

    @property
    def numel(self) -> int:
        """Parameters of one copy."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    @property
    def is_hidden(self) -> bool:
        """True for the matrices inside the layers that Muon may train: of attention, FFN and experts."""
        return self.is_matrix and self.component in ("attention", "ffn", "experts", "shared_experts")


@dataclass(frozen=True)
class ParameterCount:
    """Exact parameters by component; a matrix used twice (tied embedding) counts once, as embedding."""

    embedding: int
    position: int  # learned positions only; RoPE has no parameters
    attention: int
    ffn: int  # of dense layers
    experts: int  # routed, all of them
    shared_experts: int
    router: int
    norms: int
    head: int  # 0 if tied, except for its bias
    active: int  # parameters used per token: of the routed experts, only the top-k

    @property
    def components(self) -> dict[str, int]:
        """Parameters of each component; their sum is `total`."""
        return {name: getattr(self, name) for name in COMPONENTS}

    @property
    def total(self) -> int:
        return sum(self.components.values())


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step on one device. `activations` is an estimate, the rest is exact."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Difference:
    """One term missing from the textbook formula: `parameters` to add to it (negative: to subtract)."""

    name: str
    parameters: int
    why: str


@dataclass(frozen=True)
class Textbook:
    """The formula `L * (4*D^2 + 2*D*4*D)` and its differences to the exact count."""

    total: int
    differences: tuple[Difference, ...]


def tensors(config: ModelConfig) -> Iterator[Tensors]:
    """All parameter tensors of the transformer, matrices as [out, in]."""
    D, d, L = config.dim, config.d_head, config.n_layers
    yield Tensors("embedding", (config.vocab_size, D), 1, 1)
    if config.position == "learned":
        yield Tensors("position", (config.max_seq_len, D), 1, 1)
    for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads):
        yield from _linear("attention", heads * d, D, L, L, config.bias)
    yield from _linear("attention", D, config.n_heads * d, L, L, config.bias)

    if config.use_moe:
        E, k, shared = config.n_routed_experts, config.num_experts_per_tok, config.n_shared
        yield from _ffn("experts", config, L * E, L * k)
        yield from _ffn("shared_experts", config, L * shared, L * shared)
        yield Tensors("router", (E, D), L, L)
    else:
        yield from _ffn("ffn", config, L, L)

    vectors = 2 if config.norm == "layernorm" else 1  # weight, and the bias of LayerNorm
    norms = vectors * (L * (1 if config.parallel_block else 2) + 1)
    yield Tensors("norms", (D,), norms, norms)
    if config.qk_norm:
        yield Tensors("norms", (d,), 2 * L, 2 * L)
    if not config.tie_embeddings:
        yield Tensors("head", (config.vocab_size, D), 1, 1)
    if config.head_bias:
        yield Tensors("head", (config.vocab_size,), 1, 1)


def _linear(component: str, out: int, into: int, copies: int, active: int, bias: bool) -> Iterator[Tensors]:
    yield Tensors(component, (out, into), copies, active)
    if bias:
        yield Tensors(component, (out,), copies, active)


def _ffn(component: str, config: ModelConfig, copies: int, active: int) -> Iterator[Tensors]:
    for _ in range(2 if config.gated else 1):  # gate and up, or up alone
        yield from _linear(component, config.ffn_dim, config.dim, copies, active, config.bias)
    yield from _linear(component, config.dim, config.ffn_dim, copies, active, config.bias)


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Exact parameters, equal to `sum(p.numel())` of the transformer."""
    counts = dict.fromkeys(COMPONENTS, 0)
    active = 0
    for tensor in tensors(config):
        counts[tensor.component] += tensor.numel * tensor.copies
        active += tensor.numel * tensor.active
    return ParameterCount(**counts, active=active)


def weight_bytes(config: ModelConfig, kind: WeightType) -> int:
    """Bytes of the weights alone.

    fp32 and bf16: 4 and 2 bytes per parameter. int8 and int4: every matrix, the embedding too, at 8 and 4 bits
    per weight plus a 2-byte scale per 32 weights of a row (as GGUF's Q8_0 and Q4_0); vectors stay fp32. An export may
    leave other tensors unquantized; its report gives the size of the file.
    """
    if kind in ("fp32", "bf16"):
        return count_parameters(config).total * (4 if kind == "fp32" else 2)
    total = 0
    for tensor in tensors(config):
        if tensor.is_matrix:
            rows, columns = tensor.shape
            values = rows * columns if kind == "int8" else rows * math.ceil(columns / 2)
            total += tensor.copies * (values + 2 * rows * math.ceil(columns / QUANT_BLOCK))
        else:
            total += tensor.copies * 4 * tensor.numel
    return total


def training_memory_bytes(
    config: ModelConfig,
    tokens_per_micro_batch: int,
    *,
    activation_bytes: int = 4,
    activation_checkpointing: bool = False,
    logits_chunk: int = 1024,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> TrainingMemory:
    """Memory of a training step on one device, in bytes.

    Exact: fp32 weights and gradients (4 bytes each per parameter) and AdamW's two moments (8); Muon keeps one moment
    (4) for the hidden matrices, and its working memory within a step is not counted. Estimated: the activations saved
    for the backward pass, `activation_bytes` each (4 in fp32, 2 in bf16). Per layer and token these are, with fused
    attention: input and output of both norms, q, k, v and the attention output, and the FFN's intermediate values
    (gate, up, activated gate and product; two without a gate) for each expert used; with `activation_checkpointing`,
    each layer's input and the activations of one layer. Added to that are the final norm and the fp32 logits of one
    chunk of `logits_chunk` tokens with their gradient. Not counted: the program itself and the memory reserved by the
    allocator.
    """
    total = count_parameters(config).total
    D, F = config.dim, config.ffn_dim
    heads = 2 * config.n_heads * config.d_head + 2 * config.n_kv_heads * config.d_head
    passed = config.num_experts_per_tok + config.n_shared if config.use_moe else 1
    routed_copies = config.num_experts_per_tok * D if config.use_moe else 0
    norms = (2 if config.parallel_block else 4) * D
    layer = norms + heads + passed * (4 if config.gated else 2) * F + routed_copies
    kept = config.n_layers * D + layer if activation_checkpointing else config.n_layers * layer
    logits = 2 * 4 * min(tokens_per_micro_batch, logits_chunk) * config.vocab_size
    activations = tokens_per_micro_batch * (kept + 2 * D) * activation_bytes + logits
    spared = sum(t.numel * t.copies for t in tensors(config) if t.is_hidden) if optimizer == "muon" else 0
    return TrainingMemory(4 * total, 4 * total, 8 * total - 4 * spared, activations)


def kv_cache_bytes_per_1000_tokens(config: ModelConfig, bytes_per_value: int = 4) -> int:
    """Bytes of cached keys and values for 1,000 tokens of one conversation: 2 * L * K * d * 1000 values."""
    return 2 * config.n_layers * config.n_kv_heads * config.d_head * 1000 * bytes_per_value


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """FLOPs of a token's forward pass, the mean over a sequence of `seq_len` tokens.

    2 per weight of each matrix that the token uses (attention, FFN or top-k experts, router, output head; not the
    embedding, which is a look-up), and for attention 4*H*d per layer and attended token; causal attention attends to
    T/2 tokens in the mean: 2*L*H*d*T (Kaplan et al. 2020, with the causal half; with a sliding window W < T,
    W - W^2/2T tokens). Norms, activations, softmax, RoPE and biases are not counted.
    """
    matmul = config.vocab_size * config.dim  # the output head, tied or not
    for tensor in tensors(config):
        if tensor.is_matrix and tensor.component not in ("embedding", "position", "head"):
            matmul += tensor.numel * tensor.active
    window = min(seq_len, config.sliding_window or seq_len)
    seen_twice = window * (2 * seq_len - window) // seq_len  # tokens attended to in the mean, times 2
    return 2 * matmul + 2 * config.n_layers * config.n_heads * config.d_head * seen_twice


def training_flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """FLOPs of a token's forward and backward pass: three times the forward pass; recomputation is not counted."""
    return 3 * forward_flops_per_token(config, seq_len)


def textbook_count(config: ModelConfig) -> Textbook:
    """The formula of model cards, `L * (4*D^2 + 2*D*hidden)` with hidden = 4*D, and each difference to the exact
    count; formula and differences add up to `count_parameters(config).total`."""
    D, L = config.dim, config.n_layers
    count = count_parameters(config)
    attention = sum(t.numel * t.copies for t in tensors(config) if t.component == "attention" and t.is_matrix)
    biases = sum(t.numel * t.copies for t in tensors(config) if t.component != "norms" and not t.is_matrix)
    ffn_matrices = 3 if config.gated else 2
    one_ffn = L * ffn_matrices * D * config.ffn_dim
    all_ffn = one_ffn * (config.n_routed_experts + config.n_shared) if config.use_moe else one_ffn
    differences = (
        Difference("attention", attention - L * 4 * D * D, _why_attention(config)),
        Difference("ffn", one_ffn - L * 8 * D * D, _why_ffn(config)),
        Difference(
            "experts",
            all_ffn - one_ffn + count.router,
            f"{config.n_routed_experts} routed + {config.n_shared} shared experts in each layer, and the router; "
            "the formula has one FFN",
        ),
        Difference("norms", count.norms, f"norms ({config.norm}{', and on q and k' if config.qk_norm else ''})"),
        Difference("biases", biases, "biases; the formula has matrices only"),
        Difference(
            "embedding",
            config.vocab_size * D,
            f"embedding, {config.vocab_size:,} x {D:,}; the formula has layers only"
            + (" (the head is the same matrix)" if config.tie_embeddings else ""),
        ),
        Difference("position", count.position, f"table of {config.max_seq_len:,} learned positions"),
        Difference(
            "head",
            0 if config.tie_embeddings else config.vocab_size * D,
            "output head, a matrix separate from the embedding",
        ),
    )
    return Textbook(L * 12 * D * D, tuple(each for each in differences if each.parameters))


def _why_attention(config: ModelConfig) -> str:
    if config.n_heads * config.d_head != config.dim:
        return f"heads of {config.d_head} features: {config.n_heads * config.d_head} in all, not {config.dim}"
    return f"grouped-query attention: k and v have {config.n_kv_heads} heads, not {config.n_heads}"


def _why_ffn(config: ModelConfig) -> str:
    width, textbook = f"{config.ffn_dim:,}", f"{4 * config.dim:,}"
    if not config.gated:
        return f"FFN width {width}, not {textbook}"
    if config.hidden_dim is not None:
        return f"SwiGLU: three matrices of width {width}, not two of {textbook}"
    return (
        f"SwiGLU: three matrices, so the width is two thirds of {textbook}, "
        f"rounded up to a multiple of {config.multiple_of}: {width}"
    )
