"""Log-probabilities of labels in chunks, without materializing the logits of a batch: one function for every loss.

Shapes: N tokens, C of them in a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # label without loss (PyTorch's ignore_index)
CHUNK_ELEMENTS = 1 << 25  # logits per chunk: 128 MiB in fp32


def token_logps(
    hidden: Tensor, head_weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """log p(label) of each token, fp32, 0 where the label is -100.

    Tokens that fit into one chunk use the plain cross-entropy. Otherwise the logits are computed chunk by chunk, and
    recomputed in the backward pass, so that the logits of all tokens are never in memory together.

    Args:
        hidden: [N, D] or [B, T, D], after the final norm.
        head_weight: [V, D].
        labels: [N] or [B, T]; -100 is ignored.
        bias: [V], bias of the head, if it has one.
        chunk: tokens per chunk; None for 2^25 logits per chunk.

    Returns:
        Log-probabilities in the shape of `labels`. The matmul uses autocast's dtype if enabled, the softmax fp32.
    """
    hidden_ND, labels_N = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    chunk = chunk if chunk is not None else max(1, CHUNK_ELEMENTS // head_weight.shape[0])
    if labels_N.shape[0] <= chunk:
        logits_NV = F.linear(hidden_ND, head_weight, bias).float()
        return -F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="none").view(labels.shape)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    logps_N: Tensor = _ChunkedLogps.apply(hidden_ND, head_weight, bias, labels_N, chunk, dtype)
    return logps_N.view(labels.shape)


class _ChunkedLogps(torch.autograd.Function):
    """Chunked log-probabilities: forward saves one logsumexp per token, backward recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        logps, normalisers = [], []
        for hidden_CD, labels_C in zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True):
            logits_CV = F.linear(hidden_CD.to(dtype), weight, bias).float()
            normaliser_C = logits_CV.logsumexp(dim=-1)
            picked_C = logits_CV.gather(1, labels_C.clamp(min=0)[:, None])[:, 0]
            logps.append(torch.where(labels_C == IGNORE, 0.0, picked_C - normaliser_C))
            normalisers.append(normaliser_C)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, torch.cat(normalisers))
        ctx.chunk, ctx.dtype = chunk, dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, normaliser_N = ctx.saved_tensors
        dtype, chunk = ctx.dtype, ctx.chunk
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        grad_N = torch.where(labels_N == IGNORE, 0.0, grad_N)
        grad_weight = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device)
        grad_bias = None if bias_V is None else torch.zeros(bias_V.shape, dtype=torch.float32, device=bias_V.device)
        grads_hidden = []
        for start in range(0, labels_N.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_ND[part].to(dtype)
            logits_CV = F.linear(hidden_CD, weight, bias).float()
            # d logp(label) / d logits = onehot(label) - softmax(logits)
            grad_CV = (logits_CV - normaliser_N[part, None]).exp() * -grad_N[part, None]
            is_label_CV = labels_N[part, None] == torch.arange(weight.shape[0], device=weight.device)
            grad_CV = torch.where(is_label_CV, grad_CV + grad_N[part, None], grad_CV)  # scatter_add may be random
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(dtype)
            grads_hidden.append((grad_CV @ weight).to(hidden_ND.dtype))
            grad_weight += (grad_CV.t() @ hidden_CD).float()
        return (
            torch.cat(grads_hidden),
            grad_weight.to(weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )
