from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli.errors import UserError
from mmcli.model import grouped
from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.moe import MoEFeedForward, balance_loss
from mmcli.model.transformer import Transformer

E = 4


def make(**values: Any) -> tuple[ModelConfig, MoEFeedForward]:
    sizes = {"dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 1, "vocab_size": 8, "use_moe": True}
    config = ModelConfig(**{**sizes, "n_routed_experts": E, **values})
    block = MoEFeedForward(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0.0, 0.15, generator=generator)
    return config, block


def naive(block: MoEFeedForward, x_BTD: Tensor, config: ModelConfig) -> Tensor:
    """One token at a time, straight from the formula."""
    experts, rows = block.experts, []
    for x in x_BTD.reshape(-1, config.dim):
        logits = block.gate.weight @ x
        scores = logits.softmax(0) if config.scoring_func == "softmax" else logits.sigmoid()
        chosen = scores.argsort(descending=True)[: config.num_experts_per_tok]
        weights = scores[chosen]
        if config.norm_topk_prob:
            weights = weights / (weights.sum() + 1e-20)
        out = torch.zeros_like(x)
        for weight, e in zip(weights, chosen, strict=True):
            up = experts.up_proj[e] @ x
            inner = F.silu(experts.gate_proj[e] @ x) * up if config.gated else F.gelu(up)
            out = out + weight * (experts.down_proj[e] @ inner)
        for shared in block.shared_experts if config.n_shared else ():
            up = shared.up_proj.weight @ x
            inner = F.silu(shared.gate_proj.weight @ x) * up if config.gated else F.gelu(up)
            out = out + shared.down_proj.weight @ inner
        rows.append(out)
    return torch.stack(rows).view_as(x_BTD)


COMBINATIONS = list(itertools.product(("softmax", "sigmoid"), (True, False), (0, 1, 2), (1, 2, 3), (False, True)))


@pytest.mark.parametrize(("scoring", "norm", "shared", "k", "idle"), COMBINATIONS)
def test_moe_is_the_naive_loop(scoring: str, norm: bool, shared: int, k: int, idle: bool) -> None:
    config, block = make(scoring_func=scoring, norm_topk_prob=norm, n_shared_experts=shared, num_experts_per_tok=k)
    x = torch.randn(2, 9, config.dim, generator=torch.Generator().manual_seed(k))
    if idle:  # one direction shared by all tokens makes the router leave expert 0 out
        x[..., 0] = 2.0
        with torch.no_grad():
            block.gate.weight[0, 0] = -20.0
    assert_same_as_naive(config, block, x)
    if idle:
        for stacked in block.experts.parameters():
            assert stacked.grad is not None and not stacked.grad[0].any() and stacked.grad[1].any()


def test_ungated_experts_are_the_naive_loop() -> None:
    config, block = make(mlp="gelu")
    assert not hasattr(block.experts, "gate_proj")
    assert_same_as_naive(config, block, torch.randn(2, 9, config.dim, generator=torch.Generator().manual_seed(0)))


def assert_same_as_naive(config: ModelConfig, block: MoEFeedForward, x: Tensor) -> None:
    results = []
    for forward in (lambda each: block(each, None)[0], lambda each: naive(block, each, config)):
        block.zero_grad()
        given = x.clone().requires_grad_()
        out = forward(given)
        (out * torch.linspace(-0.1, 0.1, out.numel()).view_as(out)).sum().backward()
        results.append([out, given.grad, *(each.grad for each in block.parameters())])
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:  # the loop never touched it: a router whose one weight is always 1
            theirs = torch.zeros_like(ours)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def scored(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of 2 rows of 5 tokens, the two best experts, and which tokens are real."""
    scores = torch.randn(2, 5, E, generator=torch.Generator().manual_seed(seed)).sigmoid()
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return scores, scores.topk(2, dim=-1).indices, valid


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seq_aux", [True, False])
def test_balance_loss_is_the_formula(seq_aux: bool, scoring: str) -> None:
    config, _ = make(seq_aux=seq_aux, scoring_func=scoring)
    scores, chosen, valid = scored()
    if scoring == "softmax":
        scores = scores.softmax(-1)
    p = scores / scores.sum(-1, keepdim=True)
    rows = [[(0, s) for s in range(5)], [(1, s) for s in range(3)]]
    if not seq_aux:
        rows = [rows[0] + rows[1]]
    expected = 0.0
    for tokens in rows:
        for e in range(E):
            count = sum(int(e in chosen[b, s]) for b, s in tokens)
            expected += count * E / (len(tokens) * 2) * sum(float(p[b, s, e]) for b, s in tokens) / len(tokens)
    balance, load = balance_loss(scores, chosen, valid, config)
    assert float(balance) == pytest.approx(expected, abs=1e-6)
    assert load.tolist() == [
        sum(int(e in chosen[b, s]) for b in (0, 1) for s in range(5) if valid[b, s]) for e in range(E)
    ]


def test_an_even_load_gives_one_a_row_and_an_empty_row_nothing() -> None:
    config, _ = make()
    scores = torch.full((3, 4, E), 1 / E)
    chosen = torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]]).expand(3, 4, 2)
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2] = False
    assert float(balance_loss(scores, chosen, valid, config)[0]) == pytest.approx(2.0)


def test_the_model_sums_balance_over_layers_and_counts_no_padding() -> None:
    config, _ = make(n_layers=3)
    model = Transformer(config)
    segments = [[0] * 6, [0] * 4 + [-1] * 2]
    ctx = AttnContext.from_batch([[0, 1, 2, 3, 4, 5]] * 2, segments)
    ids = torch.randint(0, 8, (2, 6), generator=torch.Generator().manual_seed(0))
    _, stats = model(ids, ctx)
    assert stats is not None and stats.rows == 2
    assert stats.load_LE.shape == (3, E) and stats.load_LE.sum(1).tolist() == [20, 20, 20]
    assert 5.0 < stats.balance.item() < 8.0  # near 1 for each of 2 rows and 3 layers
    stats.balance.backward()
    routers = [layer.mlp.gate.weight.grad for layer in model.model.layers]
    assert all(each is not None and each.any() for each in routers)
    whole = Transformer(make(n_layers=3, seq_aux=False)[0])(ids, ctx)[1]
    assert whole is not None and whole.rows == 1 and 2.5 < whole.balance.item() < 4.0


def test_padding_does_not_move_the_balance_loss() -> None:
    config, _ = make(n_layers=2)
    model = Transformer(config)
    ctx = AttnContext.from_batch([[0, 1, 2, 3, 0, 1]], [[0, 0, 0, 0, -1, -1]])
    alone = model(torch.tensor([[1, 2, 3, 4]]), AttnContext.causal(1, 4))[1]
    for filler in (0, 7):
        padded = model(torch.tensor([[1, 2, 3, 4, filler, filler]]), ctx)[1]
        assert padded is not None and alone is not None
        torch.testing.assert_close(padded.balance, alone.balance, atol=1e-6, rtol=1e-6)
        assert torch.equal(padded.load_LE, alone.load_LE)


def test_one_token_touches_only_its_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    config, block = make(num_experts_per_tok=2, n_shared_experts=1)
    x = torch.randn(1, 1, config.dim, generator=torch.Generator().manual_seed(1))
    chosen = block.gate(x.flatten(0, 1))[2].flatten().tolist()
    with torch.no_grad():
        expected = block(x, None)[0]
        for stacked in block.experts.parameters():
            for e in set(range(E)) - set(chosen):
                stacked[e] = float("nan")  # reading one of these would show
        assert torch.equal(block(x, None)[0], expected)


@pytest.mark.parametrize("counts", [[3, 0, 4, 1], [0, 0, 8, 0], [2, 2, 2, 2]])
def test_the_grouped_kernel_of_cuda_is_called_with_the_same_meaning(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has a slow form of CUDA's grouped matmul for the CPU: both ways must agree, gradients too."""
    generator = torch.Generator().manual_seed(0)
    x, weight, out_grad = (torch.randn(s, generator=generator).bfloat16() for s in ((8, 16), (E, 24, 16), (8, 24)))
    results = []
    for has_kernel in (False, True):
        monkeypatch.setattr(grouped, "_has_kernel", lambda *_, has_kernel=has_kernel: has_kernel)
        leaves = [each.clone().requires_grad_() for each in (x, weight)]
        out = grouped.grouped_linear(*leaves, torch.tensor(counts))
        out.backward(out_grad)
        results.append([out, *(each.grad for each in leaves)])
    for loop, kernel in zip(*results, strict=True):
        torch.testing.assert_close(kernel, loop, atol=2e-2, rtol=2e-2)


def test_autocast_keeps_the_router_in_fp32() -> None:
    config, block = make()
    x = torch.randn(2, 9, config.dim, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = block(x, None)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, weights, _ = block.gate(x.flatten(0, 1))
        out = block(x, None)[0]
    assert scores.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(scores, block.gate(x.flatten(0, 1))[0], atol=0, rtol=0)
    torch.testing.assert_close(out.float(), plain, atol=0.1, rtol=0.1)
    assert not torch.equal(out.float(), plain)
    out.float().sum().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in block.parameters())


def test_experts_with_biases_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.bias = true"):
        Transformer(make(bias=True)[0])


@pytest.mark.parametrize("counts", [(70, 1, 0, 58), (0, 0, 129, 0), (3, 2, 1, 0), (64, 64, 0, 64)])
def test_grouped_products_in_bf16_are_those_of_each_block(counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = sum(counts)
    x_RI = torch.randn(rows, 24, generator=generator).bfloat16().requires_grad_()
    weight_EOI = torch.randn(4, 40, 24, generator=generator).bfloat16().requires_grad_()
    grad_RO = torch.randn(rows, 40, generator=generator).bfloat16()
    y_RO = grouped.grouped_linear(x_RI, weight_EOI, torch.tensor(counts))
    found = (y_RO, *torch.autograd.grad(y_RO, (x_RI, weight_EOI), grad_RO))
    blocks = zip(x_RI.split(counts), weight_EOI, strict=True)
    expected_RO = torch.cat([x.float() @ weight.float().t() for x, weight in blocks])
    expected = (expected_RO, *torch.autograd.grad(expected_RO, (x_RI, weight_EOI), grad_RO.float()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("norm", [False, True])
def test_the_router_of_one_expert_a_token_learns_without_the_norm_alone(norm: bool) -> None:
    config, block = make(norm_topk_prob=norm, num_experts_per_tok=1)
    x_BTD = torch.randn(2, 8, config.dim, generator=torch.Generator().manual_seed(0))
    out_BTD, _ = block(x_BTD, None)
    out_BTD.square().sum().backward()
    largest = float(block.gate.weight.grad.abs().max())
    assert (largest < 1e-6) is norm and config.router_learns is not norm
