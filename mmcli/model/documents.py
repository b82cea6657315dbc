"""Causal attention within each document of packed rows, on the CPU: what lies between documents is never computed.

One custom operator (and one for its gradient), so that a compiled graph holds it whole and serves every packing.

Shapes: N tokens of all rows, H query heads, K key/value heads, d features of a head, L tokens of a document.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # SDPA calls these itself
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

LONG = 512
"""Tokens of a document from which the kernel's gradient is quicker in bf16 than in fp32. With 40 tokens it takes three
times as long, with 2,048 three quarters; forward, bf16 gains nothing at any length (Zen 4, AVX512_BF16)."""


@torch.library.custom_op("mmcli::document_attention", mutates_args=())
def document_attention(q_NHd: Tensor, k_NKd: Tensor, v_NKd: Tensor, document_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """(out_NHd, log of the sum of exp(scores) [N, H]): softmax(q k' / sqrt(d)) v over each document up to the token.

    Args:
        document_ids_N: the document of each token; those of a document lie side by side.
    """
    dtype, lengths = q_NHd.dtype, _lengths(document_ids_N)
    q_NHd, k_NKd, v_NKd = _wide(q_NHd, k_NKd, v_NKd)
    out_NHd, logsumexp_NH = _like_outputs(q_NHd)
    parts = (_split(each, lengths) for each in (q_NHd, k_NKd, v_NKd, out_NHd, logsumexp_NH))
    for q, k, v, out, logsumexp in zip(*parts, strict=True):
        found, sums = _flash(q, k, v, 0.0, True)
        out.copy_(found)
        logsumexp.copy_(sums)
    return out_NHd.to(dtype), logsumexp_NH


@torch.library.custom_op("mmcli::document_attention_grad", mutates_args=())
def _gradient(
    grad_NHd: Tensor,
    q_NHd: Tensor,
    k_NKd: Tensor,
    v_NKd: Tensor,
    out_NHd: Tensor,
    logsumexp_NH: Tensor,
    document_ids_N: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, lengths = q_NHd.dtype, _lengths(document_ids_N)
    given: tuple[Tensor, ...] = (grad_NHd, q_NHd, k_NKd, v_NKd, out_NHd, logsumexp_NH)
    if sum(length for length in lengths if length >= LONG) < sum(lengths) / 2:
        given = _wide(*given)
    grads = tuple(torch.empty_like(each) for each in given[1:4])
    for parts in zip(*(_split(each, lengths) for each in (*given, *grads)), strict=True):
        found = _flash_backward(*parts[: len(given)], 0.0, True)
        for grad, own in zip(parts[len(given) :], found, strict=True):
            grad.copy_(own)
    q_grad_NHd, k_grad_NKd, v_grad_NKd = (each.to(dtype) for each in grads)
    return q_grad_NHd, k_grad_NKd, v_grad_NKd


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In fp32 where they are bf16."""
    return tuple(each.float() if each.dtype == torch.bfloat16 else each for each in tensors)


def _lengths(document_ids_N: Tensor) -> list[int]:
    """Tokens of each document."""
    edges = np.flatnonzero(np.diff(document_ids_N.numpy(), prepend=-1, append=-1))
    lengths: list[int] = np.diff(edges).tolist()
    return lengths


def _split(x_NHd: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """[1, H, L, d] (or [1, H, L]) of each document, without a copy."""
    return x_NHd.transpose(0, 1)[None].split(lengths, dim=2)


def _like_outputs(q_NHd: Tensor) -> tuple[Tensor, Tensor]:
    sum_type = torch.float64 if q_NHd.dtype == torch.float64 else torch.float32
    return torch.empty_like(q_NHd), q_NHd.new_empty(q_NHd.shape[:2], dtype=sum_type)


@document_attention.register_fake
def _(q_NHd: Tensor, k_NKd: Tensor, v_NKd: Tensor, document_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    return _like_outputs(q_NHd)


@_gradient.register_fake
def _(grad_NHd: Tensor, q_NHd: Tensor, k_NKd: Tensor, v_NKd: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_NHd), torch.empty_like(k_NKd), torch.empty_like(v_NKd)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    *given, document_ids_N = inputs
    ctx.save_for_backward(*given, *output, document_ids_N)


def _backward(ctx: Any, grad_NHd: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradient(grad_NHd, *ctx.saved_tensors), None)


document_attention.register_autograd(_backward, setup_context=_keep)
