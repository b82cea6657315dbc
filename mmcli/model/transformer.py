"""The model core, read top to bottom: norms, attention, block, transformer.

Parameters carry the Hugging Face names of Llama, Qwen3 and Qwen3-MoE, so that a state dict is a checkpoint.

Shapes: B rows, T tokens, D width, H query heads, K key/value heads, d features of a head, V vocabulary, L layers,
E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmcli.errors import UserError
from mmcli.model.attention import AttentionPlan, AttnContext, attend, plan_attention
from mmcli.model.config import ModelConfig
from mmcli.model.ffn import FeedForward, Linear
from mmcli.model.init import init_weights
from mmcli.model.moe import MoEFeedForward, RouterStats
from mmcli.model.recompute import as_a_whole
from mmcli.model.rotary import Rotary, rotate

Routing = tuple[Tensor, Tensor]  # (balance loss, load_E) of one layer


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # a token is written in as many as a thousand small operations
            return _rms_norm(x, self.weight, self.eps)[0]
        normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return normed


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, the factor of each row)."""
    x32 = x.float()
    length = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    factor = torch.rsqrt(length.square() / x.shape[-1] + eps)
    return (x32 * factor).mul_(weight).to(x.dtype), factor


class _RMSNorm(torch.autograd.Function):
    """The norm with a gradient by hand, which needs the input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, factor = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, factor)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, factor = ctx.saved_tensors
        width = x.shape[-1]
        x32, weight32, grad = x.float(), weight.float(), grad.float()
        product = x32 * grad
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            along = (product @ weight32)[..., None] * (factor**3 / width)
            grad_x = (grad * weight32).mul_(factor).addcmul_(x32, along, value=-1.0).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (factor.flatten() @ product.reshape(-1, width)).to(weight.dtype)
        return grad_x, grad_weight, None


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm of the configured kind; a LayerNorm has a bias, whatever `bias` says of the matrices."""
    return (
        nn.LayerNorm(config.dim, config.norm_eps)
        if config.norm == "layernorm"
        else RMSNorm(config.dim, config.norm_eps)
    )


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, queries, keys = config.dim, config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = Linear(width, queries, bias=config.bias)
        self.k_proj = Linear(width, keys, bias=config.bias)
        self.v_proj = Linear(width, keys, bias=config.bias)
        self.o_proj = Linear(queries, width, bias=config.bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = RMSNorm(config.d_head, config.norm_eps)

    def forward(self, x_BTD: Tensor, plan: AttentionPlan) -> Tensor:
        config = self.config
        heads = (*x_BTD.shape[:2], -1, config.d_head)
        q_BTHd = self.q_proj(x_BTD).view(heads)
        k_BTKd = self.k_proj(x_BTD).view(heads)
        v_BTKd = self.v_proj(x_BTD).view(heads)
        if config.qk_norm:
            q_BTHd, k_BTKd = self.q_norm(q_BTHd), self.k_norm(k_BTKd)
        if plan.rotary is not None:
            q_BTHd, k_BTKd = rotate(q_BTHd, *plan.rotary), rotate(k_BTKd, *plan.rotary)
        return self.o_proj(self._attend(q_BTHd, k_BTKd, v_BTKd, plan).flatten(2))

    def _attend(self, q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, plan: AttentionPlan) -> Tensor:
        if plan.parts:
            pieces = zip(*map(plan.split, (q_BTHd, k_BTKd, v_BTKd)), plan.parts, strict=True)
            return torch.cat([self._attend(*piece).flatten(0, 1) for piece in pieces])[None]
        if plan.ctx.cache is not None:
            k_BTKd, v_BTKd = plan.ctx.cache.update(self.layer, k_BTKd, v_BTKd)
        return attend(q_BTHd, k_BTKd, v_BTKd, plan)


class Block(nn.Module):
    """Pre-norm: x + attention(norm x), then + ffn(norm x); or both side by side on one norm (Phi)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        if not config.parallel_block:
            self.post_attention_layernorm = make_norm(config)
        self.mlp: nn.Module = MoEFeedForward(config) if config.use_moe else FeedForward(config)

    def forward(self, x_BTD: Tensor, plan: AttentionPlan) -> tuple[Tensor, Routing | None]:
        """(x_BTD, router statistics of this layer; None for a dense one or with a cache)."""
        normed = self.input_layernorm(x_BTD)
        mixed = x_BTD + self._drop(self.self_attn(normed, plan))
        ffn_in = normed if self.config.parallel_block else self.post_attention_layernorm(mixed)
        ffn_out, routing = self.mlp(ffn_in, plan.valid_BT) if self.config.use_moe else (self.mlp(ffn_in), None)
        return mixed + self._drop(ffn_out), routing

    def _drop(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.config.dropout, self.training)


class Trunk(nn.Module):
    """Everything below the head; a module of its own for the sake of the names (`model.layers.0...`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Weights come from init_weights: torch.empty keeps nn.Embedding from drawing its own.
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim)
        )
        if config.position == "learned":
            table = torch.empty(config.max_seq_len, config.dim)
            self.embed_positions = nn.Embedding(config.max_seq_len, config.dim, _weight=table)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)


class Head(nn.Module):
    """The output head's own parameters: no weight when it is the embedding, no bias unless asked for."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        weight = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.register_parameter("weight", weight)
        self.register_parameter("bias", nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None)


class Transformer(nn.Module):
    """A decoder-only language model. It returns hidden states, never the logits of a whole batch."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        """A model with the weights of `seed` (see `mmcli.model.init`); without weights on the meta device.

        Raises:
            UserError: experts with biases, which no known architecture has.
        """
        super().__init__()
        if config.use_moe and config.bias:
            raise UserError("model.bias = true with model.use_moe = true", "experts have no biases: set one to false")
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Head(config)
        self.rotary = Rotary(config) if config.position == "rope" else None
        self.checkpoint_layers = False  # recompute each layer in the backward pass: less memory, a third more work
        if not self.head_weight.is_meta:
            init_weights(self, config, seed)

    @property
    def head_weight(self) -> Tensor:
        """[V, D] of the output head, the embedding when tied."""
        weight = self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight
        assert weight is not None
        return weight

    @property
    def head_bias(self) -> Tensor | None:
        """[V] of the output head, if it has one."""
        return self.lm_head.bias

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; for a few tokens, where losses use `token_logps`."""
        return F.linear(hidden, self.head_weight, self.head_bias)

    def forward(self, ids_BT: Tensor, ctx: AttnContext) -> tuple[Tensor, RouterStats | None]:
        """Hidden states after the final norm.

        Args:
            ids_BT: token ids, int64.
            ctx: attention mask metadata; with a cache, keys and values of the new tokens are written into it.

        Returns:
            (hidden_BTD, router statistics; None for a dense model or with a cache).
        """
        config = self.config
        x_BTD = self.model.embed_tokens(ids_BT)
        if config.position == "learned":
            x_BTD = x_BTD + self.model.embed_positions(ctx.positions_BT)
        x_BTD = F.dropout(x_BTD, config.dropout, self.training)
        device = x_BTD.device.type
        plan = plan_attention(
            ctx,
            config,
            dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BTD.dtype,
            training=self.training,
            rotary=self.rotary(ctx.positions_BT) if self.rotary is not None else None,
        )
        routings: list[Routing] = []
        for block in self.model.layers:
            if self.checkpoint_layers and torch.is_grad_enabled():
                x_BTD, routing = checkpoint(as_a_whole, block, x_BTD, plan, use_reentrant=False)
            else:
                x_BTD, routing = block(x_BTD, plan)
            if routing is not None:
                routings.append(routing)
        hidden_BTD = self.model.norm(x_BTD)
        if not routings:
            return hidden_BTD, None
        balance = torch.stack([balance for balance, _ in routings]).sum()
        load_LE = torch.stack([load_E for _, load_E in routings])
        return hidden_BTD, RouterStats(balance, ctx.rows if config.seq_aux else 1, load_LE)
