"""Linear maps of many experts at once: rows lie sorted by expert, each block of rows meets its expert's matrix.

One custom operator (and two for its gradient), so that a compiled graph holds it whole and serves every load. An idle
expert costs nothing and gets a zero gradient.

Shapes: R rows, E experts, I features in, O features out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS_STEP = 64


@torch.library.custom_op("mmcli::grouped_linear", mutates_args=())
def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """y_RO: block e of the rows times `weight_EOI[e]` transposed; block e has `counts_E[e]` rows (sum R)."""
    if _has_kernel(x_RI, weight_EOI):
        return torch._grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=_ends(counts_E))
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])
    for expert, start, stop in _blocks(counts_E):
        _multiply(x_RI, weight_EOI[expert].t(), y_RO, start, stop)
    return y_RO


@torch.library.custom_op("mmcli::grouped_linear_grad_x", mutates_args=())
def _grad_x(grad_RO: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    if _has_kernel(grad_RO, weight_EOI):
        return torch._grouped_mm(grad_RO, weight_EOI, offs=_ends(counts_E))
    grad_RI = grad_RO.new_empty(grad_RO.shape[0], weight_EOI.shape[2])
    for expert, start, stop in _blocks(counts_E):
        _multiply(grad_RO, weight_EOI[expert], grad_RI, start, stop)
    return grad_RI


@torch.library.custom_op("mmcli::grouped_linear_grad_weight", mutates_args=())
def _grad_weight(grad_RO: Tensor, x_RI: Tensor, counts_E: Tensor) -> Tensor:
    if _has_kernel(grad_RO, x_RI):
        grad_EOI = torch._grouped_mm(grad_RO.t(), x_RI, offs=_ends(counts_E))
        return torch.where((counts_E > 0)[:, None, None], grad_EOI, 0)  # the kernel may leave an empty block unwritten
    grad_EOI = grad_RO.new_empty(counts_E.shape[0], grad_RO.shape[1], x_RI.shape[1])
    idle = set(range(counts_E.shape[0]))
    for expert, start, stop in _blocks(counts_E):
        first, last = _window(x_RI, start, stop)
        x_WI = x_RI[first:last]
        if (first, last) != (start, stop):
            x_WI = torch.zeros_like(x_WI)
            x_WI[start - first : stop - first] = x_RI[start:stop]
        torch.mm(grad_RO[first:last].t(), x_WI, out=grad_EOI[expert])
        idle.remove(expert)
    for expert in idle:
        grad_EOI[expert].zero_()
    return grad_EOI


def _multiply(x_RI: Tensor, matrix_IO: Tensor, y_RO: Tensor, start: int, stop: int) -> None:
    """Rows `start` to `stop` of y: those of x times the matrix."""
    first, last = _window(x_RI, start, stop)
    if (first, last) == (start, stop):
        torch.mm(x_RI[start:stop], matrix_IO, out=y_RO[start:stop])
    else:
        y_RO[start:stop] = torch.mm(x_RI[first:last], matrix_IO)[start - first : stop - first]


def _window(x_RI: Tensor, start: int, stop: int) -> tuple[int, int]:
    """The rows to multiply for a block: the block, or with it some neighbours whose products are thrown away.

    On the CPU each new number of bf16 rows costs milliseconds, since a kernel is compiled for it (oneDNN). The loads
    are new at every step, so there the number is rounded up.
    """
    if x_RI.device.type != "cpu" or x_RI.dtype != torch.bfloat16:
        return start, stop
    rows = x_RI.shape[0]
    width = min(rows, -(-(stop - start) // ROWS_STEP) * ROWS_STEP)
    first = min(start, rows - width)
    return first, first + width


def _has_kernel(*operands: Tensor) -> bool:
    """CUDA's grouped matmul takes bf16 with rows on 16-byte borders, from compute capability 8.0."""
    first = operands[0]
    if not first.is_cuda or first.dtype != torch.bfloat16 or torch.cuda.get_device_capability(first.device) < (8, 0):
        return False
    return all(size % 8 == 0 for each in operands for size in each.shape[1:])


def _ends(counts_E: Tensor) -> Tensor:
    return counts_E.cumsum(0).to(torch.int32)


def _blocks(counts_E: Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, row after the last) of each busy expert. Waits for the device once."""
    blocks, start = [], 0
    for expert, count in enumerate(counts_E.tolist()):
        if count:
            blocks.append((expert, start, start + count))
        start += count
    return blocks


@grouped_linear.register_fake
def _(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    return x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])


@_grad_x.register_fake
def _(grad_RO: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    return grad_RO.new_empty(grad_RO.shape[0], weight_EOI.shape[2])


@_grad_weight.register_fake
def _(grad_RO: Tensor, x_RI: Tensor, counts_E: Tensor) -> Tensor:
    return grad_RO.new_empty(counts_E.shape[0], grad_RO.shape[1], x_RI.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_RI, weight_EOI, counts_E = ctx.saved_tensors
    grad_RO = grad_RO.contiguous()
    grad_x = _grad_x(grad_RO, weight_EOI, counts_E) if ctx.needs_input_grad[0] else None
    grad_weight = _grad_weight(grad_RO, x_RI, counts_E) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None


grouped_linear.register_autograd(_backward, setup_context=_keep_inputs)
