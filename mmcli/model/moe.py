"""Mixture of experts: another FFN inside the same block.

out(x) = sum over the k chosen experts of w_i E_i(x), plus every shared expert of x. Scores over all routed experts, in
fp32; the k best; divided by (sum + 1e-20) when `norm_topk_prob` (DeepSeekMoE, arXiv:2401.06066, section 3).

Tokens are sorted by expert once, so that each expert sees one contiguous block, and brought back through the inverse
permutation: the same sum in the same order every time, no atomic additions.

Shapes: B rows, T tokens, N = B*T, D width, F expert width, E routed experts, k chosen for a token, R = N*k, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcli.model.config import ModelConfig
from mmcli.model.ffn import FeedForward, activate
from mmcli.model.grouped import grouped_linear
from mmcli.model.recompute import recomputed


@dataclass(frozen=True)
class RouterStats:
    """Router statistics of one forward pass; the loss takes `aux_loss_alpha * balance / rows`."""

    balance: Tensor  # scalar, differentiable: the balance loss summed over rows (or of the one batch) and over layers
    rows: int  # what to divide it by: rows with a token, or 1 when the batch is balanced as a whole
    load_LE: Tensor  # tokens that each expert of each layer got, padding left out, int64


class Router(nn.Module):
    """Chooses the experts of each token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.dim))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scores_NE, weights_Nk, experts_Nk), scores and weights in fp32, also under autocast."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.weight.float())
        scores_NE = logits_NE.softmax(dim=-1) if self.config.scoring_func == "softmax" else logits_NE.sigmoid()
        weights_Nk, experts_Nk = scores_NE.topk(self.config.num_experts_per_tok, dim=-1)
        if self.config.norm_topk_prob:
            weights_Nk = weights_Nk / (weights_Nk.sum(dim=-1, keepdim=True) + 1e-20)
        return scores_NE, weights_Nk, experts_Nk


class Experts(nn.Module):
    """The routed experts, one stacked parameter a projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        n_experts, width, inner = config.n_routed_experts, config.dim, config.ffn_dim
        if config.gated:
            self.gate_proj = nn.Parameter(torch.empty(n_experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(n_experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(n_experts, width, inner))

    def forward(self, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert, `counts_E` of them each, through their experts."""
        device = x_RD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_RD.dtype
        x_RD = x_RD.to(dtype)
        gate_RF = self.project("gate_proj", x_RD, counts_E) if self.config.gated else None
        up_RF = self.project("up_proj", x_RD, counts_E)
        product_RF = activate(gate_RF, up_RF, self.config.mlp)
        with recomputed(product_RF, lambda: activate(gate_RF, up_RF, self.config.mlp), weight=self.down_proj):
            return self.project("down_proj", product_RF, counts_E)

    def project(self, name: str, x_RI: Tensor, counts_E: Tensor) -> Tensor:
        """The rows through the projection `name` of their experts; what an adapter of the experts overrides."""
        return self.grouped(x_RI, getattr(self, name), counts_E)

    @staticmethod
    def grouped(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert through the matrices of their experts, in the type of the rows."""
        y_RO: Tensor = grouped_linear(x_RI, weight_EOI.to(x_RI.dtype), counts_E)
        return y_RO


class MoEFeedForward(nn.Module):
    """Router, routed experts and shared experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Router(config)
        self.experts = Experts(config)
        if config.n_shared:
            self.shared_experts = nn.ModuleList(FeedForward(config) for _ in range(config.n_shared))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """(out_BTD, (balance, load_E)); None for the second where `valid_BT` (True: not padding) is None."""
        config, x_ND = self.config, x_BTD.flatten(0, 1)
        scores_NE, weights_Nk, experts_Nk = self.gate(x_ND)
        order_R, inverse_R, counts_E = sort_by_expert(experts_Nk, config.n_routed_experts)
        k = config.num_experts_per_tok
        x_RD = _take_rows(x_ND, order_R, inverse_R, k)
        y_RD = _take_rows(self.experts(x_RD, counts_E), inverse_R, order_R, 1)
        y_ND = (y_RD.view(-1, k, config.dim) * weights_Nk[:, :, None]).sum(dim=1)
        out_BTD = y_ND.to(x_BTD.dtype).view_as(x_BTD)
        for expert in self.shared_experts if config.n_shared else ():
            out_BTD = out_BTD + expert(x_BTD)
        if valid_BT is None:
            return out_BTD, None
        shape = (*valid_BT.shape, -1)
        return out_BTD, balance_loss(scores_NE.view(shape), experts_Nk.view(shape), valid_BT, config)


def sort_by_expert(experts_Nk: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(order_R, inverse_R, counts_E): the (token, choice) pairs sorted by expert, the way back, the block lengths."""
    experts_R = experts_Nk.flatten()
    order_R = experts_R.argsort(stable=True)
    inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))
    counts_E = (experts_R[:, None] == torch.arange(n_experts, device=experts_R.device)).sum(dim=0)
    return order_R, inverse_R, counts_E


def balance_loss(
    scores_BTE: Tensor, experts_BTk: Tensor, valid_BT: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """(balance, load_E): the sum over rows of sum_e [count_be * E / (S_b k)] * mean_s p_bse, over real tokens.

    S_b is the number of tokens of row b that are not padding; a row without any counts nothing. Without `seq_aux` the
    batch is one row. p are the scores; sigmoid scores are first divided by their sum over the experts, so that a
    token's p sum to 1 there too (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20). A perfectly even load gives 1 a
    row.
    """
    if config.scoring_func == "sigmoid":
        scores_BTE = scores_BTE / (scores_BTE.sum(dim=-1, keepdim=True) + 1e-20)
    n_experts = scores_BTE.shape[-1]
    chosen_BTE = (experts_BTk[..., None] == torch.arange(n_experts, device=experts_BTk.device)).sum(dim=2)
    counts_BE = (chosen_BTE * valid_BT[..., None]).sum(dim=1)
    mass_BE = (scores_BTE * valid_BT[..., None]).sum(dim=1)
    tokens_B = valid_BT.sum(dim=1)
    load_E = counts_BE.sum(dim=0)
    if not config.seq_aux:
        counts_BE, mass_BE, tokens_B = load_E[None], mass_BE.sum(dim=0)[None], tokens_B.sum()[None]
    tokens_B = tokens_B.clamp(min=1).float()
    share_BE = counts_BE * (n_experts / config.num_experts_per_tok) / tokens_B[:, None]
    return (share_BE * mass_BE / tokens_B[:, None]).sum(), load_E


def _take_rows(x_ND: Tensor, order_R: Tensor, inverse_R: Tensor, repeats: int) -> Tensor:
    """Row i of the answer is `x_ND` with each row repeated `repeats` times, at `order_R[i]`."""
    rows: Tensor = _TakeRows.apply(x_ND, order_R, inverse_R, repeats)
    return rows


class _TakeRows(torch.autograd.Function):
    """Gather whose gradient is a gather through the inverse permutation: deterministic, and no zeros to fill."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_R: Tensor, inverse_R: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.repeats = repeats
        return x_ND.index_select(0, order_R // repeats if repeats > 1 else order_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        (inverse_R,) = ctx.saved_tensors
        grad_RD = grad_RD.index_select(0, inverse_R)
        return grad_RD.view(-1, ctx.repeats, grad_RD.shape[-1]).sum(dim=1), None, None, None
