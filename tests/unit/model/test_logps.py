from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmcli.model.logps import token_logps

N, D, V = 23, 8, 31


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    bias = torch.randn(V, generator=generator, requires_grad=True)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[[0, 5, 6, 22]] = -100
    return hidden, weight, bias, labels


def expected(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """From the whole logits."""
    logps = (hidden @ weight.t() + bias).log_softmax(-1)
    return torch.where(labels < 0, 0.0, logps[torch.arange(N), labels.clamp(min=0)])


@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_logps_and_gradients_are_those_of_the_whole_logits(chunk: int | None, with_bias: bool) -> None:
    upstream = torch.linspace(-2, 3, N)  # another weight for each token, as DPO has
    results = []
    for way in ("ours", "whole"):
        hidden, weight, bias, labels = inputs()
        if way == "ours":
            logps = token_logps(hidden, weight, labels, bias=bias if with_bias else None, chunk=chunk)
        else:
            logps = expected(hidden, weight, bias if with_bias else torch.zeros(V), labels)
        (logps * upstream).sum().backward()
        results.append([logps, hidden.grad, weight.grad, *([bias.grad] if with_bias else [])])
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 5])
def test_ignored_labels_give_zero_and_no_gradient(chunk: int | None) -> None:
    hidden, weight, _, labels = inputs()
    logps = token_logps(hidden, weight, labels, chunk=chunk)
    logps.sum().backward()
    ignored = labels == -100
    assert not logps[ignored].any() and logps[~ignored].all()
    assert hidden.grad is not None and not hidden.grad[ignored].any() and hidden.grad[~ignored].any(dim=1).all()


@pytest.mark.parametrize("chunk", [None, 5])
def test_rows_keep_their_shape_and_no_gradient_is_needed(chunk: int | None) -> None:
    hidden, weight, bias, labels = inputs()
    hidden, labels = hidden[:20].view(4, 5, D), labels[:20].view(4, 5)
    with torch.no_grad():
        logps = token_logps(hidden, weight, labels, bias=bias, chunk=chunk)
    assert logps.shape == (4, 5) and logps.dtype == torch.float32 and not logps.requires_grad
    torch.testing.assert_close(logps, token_logps(hidden, weight, labels, bias=bias, chunk=chunk), atol=0, rtol=0)


@pytest.mark.parametrize("chunk", [None, 5])
def test_autocast_gives_fp32_from_bf16_matmuls(chunk: int | None) -> None:
    hidden, weight, bias, labels = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = token_logps(hidden, weight, labels, bias=bias, chunk=chunk)
    logps.sum().backward()
    assert logps.dtype == torch.float32 and weight.grad is not None and weight.grad.dtype == torch.float32
    exact = expected(hidden, weight, bias, labels)
    torch.testing.assert_close(logps, exact, atol=0.1, rtol=0.05)
    assert not torch.equal(logps, exact)


def test_the_chunked_way_keeps_no_logits() -> None:
    hidden, weight, _, labels = inputs()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        token_logps(hidden, weight, labels, chunk=5)
    assert kept and max(kept) < 5 * V * 2 < N * V


@pytest.mark.parametrize("chunk", [None, 1, 5])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_frozen_head_gives_the_hidden_states_the_same_gradient(chunk: int | None, precision: torch.dtype) -> None:
    grads = []
    for frozen in (True, False):
        hidden, weight, bias, labels = inputs()
        weight, bias = weight.detach().requires_grad_(not frozen), bias.detach().requires_grad_(not frozen)
        with torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16):
            logps = token_logps(hidden, weight, labels, bias=bias, chunk=chunk)
        (logps * torch.linspace(-2, 3, N)).sum().backward()
        assert (weight.grad is None) == frozen and hidden.grad is not None
        grads.append(hidden.grad)
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_frozen_head_keeps_no_logits(chunk: int | None) -> None:
    hidden, weight, _, labels = inputs()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        token_logps(hidden, weight.detach(), labels, chunk=chunk)
    assert kept and max(kept) == N * D
