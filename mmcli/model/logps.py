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

    Of tokens that fit into one chunk one matrix [N, V] is kept for the backward pass. Otherwise the logits are computed
    chunk by chunk, and again in the backward pass, so that those of all tokens are never in memory together. Of a head
    that does not train no logits are kept or computed again: the gradient [N, D] is known after the forward pass.

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
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    logps_N: Tensor = _TokenLogps.apply(hidden_ND, head_weight, bias, labels_N, chunk, dtype)
    return logps_N.view(labels.shape)


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities whose gradient needs softmax - onehot alone, which takes the place of the logits.

    What each token's gradient is multiplied by goes to the hidden states, which are narrower than the logits.
    """

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
        of_hidden, *of_head = ctx.needs_input_grad[:3]
        alone = of_hidden and not any(of_head)  # a frozen head: the hidden states' gradient needs no logits later
        logps: list[Tensor] = []
        grads: list[Tensor] = []
        for hidden_CD, labels_C in zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True):
            logps_C, error_CV = _logps_and_error(hidden_CD, weight_VD, bias_V, labels_C, dtype)
            logps.append(logps_C)
            if alone:
                grads.append(error_CV.to(dtype) @ weight_VD.to(dtype))
        if alone:
            ctx.save_for_backward(labels_N, torch.cat(grads))
        else:
            kept_NV = error_CV if len(logps) == 1 else None
            ctx.save_for_backward(labels_N, None, hidden_ND, weight_VD, bias_V, kept_NV)
        ctx.chunk, ctx.dtype, ctx.hidden_dtype = chunk, dtype, hidden_ND.dtype
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        labels_N, grad_ND, *kept = ctx.saved_tensors
        factor_N = torch.where(labels_N == IGNORE, 0.0, -grad_N)
        if grad_ND is not None:
            return ((grad_ND * factor_N[:, None]).to(ctx.hidden_dtype), None, None, None, None, None)
        hidden_ND, weight_VD, bias_V, kept_NV = kept
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grads_hidden, grad_weight, grad_bias = [], None, None
        for start in range(0, max(1, labels_N.shape[0]), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            hidden_CD, factor_C1 = hidden_ND[part], factor_N[part, None]
            error_CV = kept_NV
            if error_CV is None:
                _, error_CV = _logps_and_error(hidden_CD, weight_VD, bias_V, labels_N[part], ctx.dtype)
            if of_bias:
                grad_bias = _added(grad_bias, factor_N[part] @ error_CV)
            error_CV = error_CV.to(ctx.dtype)
            if of_hidden:
                grads_hidden.append((error_CV @ weight_VD.to(ctx.dtype)) * factor_C1)
            if of_weight:
                grad_weight = _added(grad_weight, (error_CV.t() @ (hidden_CD * factor_C1).to(ctx.dtype)).float())
        return (
            torch.cat(grads_hidden).to(ctx.hidden_dtype) if of_hidden else None,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _logps_and_error(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_C: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(log p(label), softmax - onehot [C, V]) in fp32, the second in the memory of the logits."""
    bias = None if bias_V is None else bias_V.to(dtype)
    logits_CV = F.linear(hidden_CD.to(dtype), weight_VD.to(dtype), bias).float()
    label_C1 = labels_C.clamp(min=0)[:, None]
    picked_C1, most_C1 = logits_CV.gather(1, label_C1), logits_CV.amax(dim=1, keepdim=True)
    softmax_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)
    # The likeliest token has exp(most) / sum of exp(logits): the logarithm of the sum, without another pass.
    logsumexp_C1 = most_C1 - softmax_CV.amax(dim=1, keepdim=True).log()
    logps_C = torch.where(labels_C == IGNORE, 0.0, (picked_C1 - logsumexp_C1)[:, 0])
    error_CV = softmax_CV.scatter_(1, label_C1, softmax_CV.gather(1, label_C1) - 1.0)
    return logps_C, error_CV
