"""Configuration of the transformer. No torch here: counts, presets and export read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcli.config import ConfigError, option

# Beyond every model that there is: what is larger is a mistake or a damaged file, and would take all memory.
MOST = {
    "dim": 2**17,
    "n_layers": 4096,
    "n_heads": 2**14,
    "n_kv_heads": 2**14,
    "vocab_size": 2**22,
    "hidden_dim": 2**20,
    "multiple_of": 2**20,
    "max_seq_len": 2**27,
    "num_experts_per_tok": 4096,
    "n_routed_experts": 4096,
    "n_shared_experts": 4096,
    "head_dim": 2**14,
    "sliding_window": 2**27,
    "rope_original_seq_len": 2**27,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the transformer. Widths in features, lengths in tokens."""

    dim: int = option(512, "hidden size")
    n_layers: int = option(8, "transformer layers")
    n_heads: int = option(8, "query heads")
    n_kv_heads: int = option(2, "key/value heads (grouped-query attention)")
    vocab_size: int = option(6400, "vocabulary size")
    hidden_dim: int | None = option(None, 'FFN width; "none": 4*dim ungated, two thirds of that gated, rounded up')
    multiple_of: int = option(64, "a derived FFN width is rounded up to a multiple of this")
    norm_eps: float = option(1e-5, "epsilon of the norms")
    max_seq_len: int = option(8192, "maximum context length in tokens")
    rope_theta: float = option(1e6, "RoPE base frequency (theta)")
    dropout: float = option(0.0, "dropout probability (embedding, attention, residual)")
    flash_attn: bool = option(True, "fused attention kernels (SDPA, FlashAttention); false: plain softmax")

    use_moe: bool = option(False, "mixture of experts in every layer")
    num_experts_per_tok: int = option(2, "routed experts per token (top-k)")
    n_routed_experts: int = option(4, "routed experts per layer")
    n_shared_experts: bool | int = option(True, "shared experts, used by every token (true = 1, or a count)")
    scoring_func: Literal["softmax", "sigmoid"] = option("softmax", "router scoring function")
    aux_loss_alpha: float = option(0.1, "load-balancing loss coefficient")
    seq_aux: bool = option(True, "load-balancing loss per packed sequence; false: per micro-batch")
    norm_topk_prob: bool = option(True, "normalize the top-k router weights to sum to 1")

    head_dim: int | None = option(None, 'head dimension; "none": dim / n_heads')
    qk_norm: bool = option(False, "RMSNorm on query and key heads (Qwen3)")
    tie_embeddings: bool = option(True, "share the embedding matrix with the output head")
    norm: Literal["rmsnorm", "layernorm"] = option("rmsnorm", "normalization layer")
    position: Literal["rope", "learned"] = option("rope", "position embedding: rotary (RoPE) or learned (GPT-2)")
    rotary_fraction: float = option(1.0, "fraction of the head dimension with RoPE (Phi: 0.5)")
    rope_scaling: Literal["none", "linear", "yarn", "llama3"] = option("none", "RoPE scaling method")
    rope_factor: float = option(1.0, "RoPE scaling factor")
    rope_original_seq_len: int | None = option(None, 'context before RoPE scaling; "none": max_seq_len / rope_factor')
    sliding_window: int | None = option(None, 'attention window in tokens, itself included; "none": full attention')
    mlp: Literal["swiglu", "gelu", "gelu_tanh"] = option("swiglu", "FFN activation; swiglu is gated (three matrices)")
    bias: bool = option(False, "biases in attention and FFN")
    head_bias: bool = option(False, "bias in the output head (Phi)")
    parallel_block: bool = option(False, "attention and FFN in parallel on one norm (Phi)")
    init_std: float = option(0.02, "standard deviation of the initial weights")

    def __post_init__(self) -> None:
        self._check_ranges()
        positive = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "max_seq_len")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(name, f"model.{name} = {getattr(self, name)} is not positive", "give 1 or more")
        if self.n_heads % self.n_kv_heads:
            what = f"model.n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}"
            raise ConfigError("n_kv_heads", what, "give a divisor of n_heads")
        if self.head_dim is None and self.dim % self.n_heads:
            what = f"model.n_heads = {self.n_heads} does not divide dim = {self.dim}"
            raise ConfigError("n_heads", what, "give a divisor of dim, or set model.head_dim")
        if self.hidden_dim is not None and self.hidden_dim < 1:
            what = f"model.hidden_dim = {self.hidden_dim} is not positive"
            raise ConfigError("hidden_dim", what, 'give 1 or more, or "none" to derive it from dim')
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(
                "dropout", f"model.dropout = {self.dropout} is not in 0 to 1", "give a probability such as 0.1"
            )
        if self.position == "rope" and self.rotary_dim % 2:
            what = f"model.head_dim = {self.d_head} gives an odd RoPE dimension, {self.rotary_dim}"
            raise ConfigError("head_dim", what, "change n_heads or head_dim so that it is even")
        if self.use_moe and not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            what = f"model.num_experts_per_tok = {self.num_experts_per_tok} of {self.n_routed_experts} routed experts"
            raise ConfigError("num_experts_per_tok", what, "give 1 up to n_routed_experts")

    def _check_ranges(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(name, f"model.{name} = {value:,} is above {most:,}", f"give {most:,} or less")
        least = {"rope_factor": 1.0, "n_shared_experts": 0, "aux_loss_alpha": 0.0, "head_dim": 1, "sliding_window": 1}
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise ConfigError(name, f"model.{name} = {value} is below {limit}", f"give {limit} or more")
        for name in ("rope_theta", "norm_eps", "init_std", "rotary_fraction"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"model.{name} = {getattr(self, name)} is not positive", "give more than 0")
        if self.rotary_fraction > 1.0:
            what = f"model.rotary_fraction = {self.rotary_fraction} is above 1"
            raise ConfigError("rotary_fraction", what, "give a fraction such as 0.5")
        if self.rope_factor != 1.0 and self.rope_scaling == "none":
            what = f"model.rope_factor = {self.rope_factor} has no effect without rope_scaling"
            raise ConfigError("rope_factor", what, 'set model.rope_scaling to "linear", "yarn" or "llama3"')
        if self.use_moe and self.bias:
            what = "model.bias = true with model.use_moe = true: experts have no biases"
            raise ConfigError("bias", what, "set one of them to false")

    @property
    def d_head(self) -> int:
        """Head dimension in features."""
        return self.head_dim if self.head_dim is not None else self.dim // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Features of a head to which RoPE is applied."""
        return int(self.d_head * self.rotary_fraction)

    @property
    def original_seq_len(self) -> int:
        """Context length in tokens that the model was trained with before RoPE scaling."""
        return self.rope_original_seq_len or int(self.max_seq_len / self.rope_factor)

    @property
    def gated(self) -> bool:
        """True if the FFN has a gate: three matrices instead of two."""
        return self.mlp == "swiglu"

    @property
    def ffn_dim(self) -> int:
        """FFN width F: `hidden_dim`, or derived from `dim`."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        if not self.gated:
            return 4 * self.dim
        width = 8 * self.dim // 3
        return (width + self.multiple_of - 1) // self.multiple_of * self.multiple_of

    @property
    def router_learns(self) -> bool:
        """False where every weight of a chosen expert is 1, so that no gradient of the loss reaches the router."""
        return not (self.use_moe and self.num_experts_per_tok == 1 and self.norm_topk_prob)

    @property
    def n_shared(self) -> int:
        """Shared experts per layer; 0 for a dense model."""
        return int(self.n_shared_experts) if self.use_moe else 0
