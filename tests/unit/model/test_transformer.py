from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcli.model.attention import AttnContext
from mmcli.model.config import ModelConfig
from mmcli.model.logps import token_logps
from mmcli.model.transformer import Transformer

V = 50
SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": V, "max_seq_len": 32, "init_std": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": {"use_moe": True},
    "moe sigmoid": {"use_moe": True, "scoring_func": "sigmoid", "n_shared_experts": 0},
    "window, qk-norm": {"sliding_window": 3, "qk_norm": True},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu_tanh", "bias": True},
    "phi": {
        "parallel_block": True, "norm": "layernorm", "mlp": "gelu", "bias": True, "head_bias": True,
        "rotary_fraction": 0.5, "tie_embeddings": False,
    },
}  # fmt: skip
LENGTHS = (5, 1, 8)  # documents of the packed row, then 2 tokens of padding


def packed() -> tuple[Tensor, Tensor, AttnContext]:
    """One row of three documents and padding, with next-token labels inside each document."""
    ids = torch.randint(0, V, (1, 16), generator=torch.Generator().manual_seed(0))
    labels, positions, segments = (torch.full((1, 16), fill) for fill in (-100, 0, -1))
    start = 0
    for number, length in enumerate(LENGTHS):
        stop = start + length
        labels[0, start : stop - 1] = ids[0, start + 1 : stop]
        positions[0, start:stop] = torch.arange(length)
        segments[0, start:stop] = number
        start = stop
    return ids, labels, AttnContext.from_batch(positions, segments)


def loss_of(model: Transformer, ids: Tensor, labels: Tensor, ctx: AttnContext) -> Tensor:
    return -token_logps(model(ids, ctx)[0], model.head_weight, labels, bias=model.head_bias).sum()


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_document_has_the_loss_and_gradients_that_it_has_alone(kind: str, flash: bool) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind], flash_attn=flash))
    ids, labels, ctx = packed()
    hidden, _ = model(ids, ctx)
    logps = token_logps(hidden, model.head_weight, labels, bias=model.head_bias)[0]
    logps.mean().backward()
    together = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    start, alone = 0, torch.zeros(())
    for length in LENGTHS:
        stop = start + length
        context = AttnContext.causal(1, length)
        own = token_logps(
            model(ids[:, start:stop], context)[0], model.head_weight, labels[:, start:stop], bias=model.head_bias
        )
        torch.testing.assert_close(own[0], logps[start:stop], atol=1e-6, rtol=1e-6)
        alone, start = alone + own.sum() / 16, stop
    alone.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), together, strict=True):
        torch.testing.assert_close(
            gradient, parameter.grad, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_influence(kind: str) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind]))
    ids, labels, ctx = packed()
    losses = []
    for filler in (0, 49):
        ids[0, sum(LENGTHS) :] = filler
        loss = loss_of(model, ids, labels, ctx)
        losses.append(loss)
    assert torch.equal(*losses)
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_fused_and_plain_attention_agree(kind: str) -> None:
    ids, labels, ctx = packed()
    results = []
    for flash in (True, False):
        model = Transformer(ModelConfig(**SIZES, **KINDS[kind], flash_attn=flash))
        loss = loss_of(model, ids, labels, ctx) / 16
        loss.backward()
        results.append([loss, *(each.grad for each in model.parameters())])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_recomputed_layers_give_the_same_gradients(kind: str, dropout: float) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind], dropout=dropout))
    ids, labels, ctx = packed()
    gradients, kept = [], []
    for recompute in (False, True):
        model.zero_grad()
        model.checkpoint_layers = recompute
        torch.manual_seed(0)
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            hidden, stats = model(ids, ctx)
        loss = -token_logps(hidden, model.head_weight, labels).sum()
        (loss if stats is None else loss + stats.balance).backward()
        gradients.append([each.grad for each in model.parameters()])
        kept.append(sum(sizes))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["dense", "moe", "gpt2", "phi"])
def test_dropout_acts_in_training_only(kind: str, flash: bool) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind], dropout=0.2, flash_attn=flash))
    ids, _, ctx = packed()
    assert not torch.equal(model(ids, ctx)[0], model(ids, ctx)[0])
    model.eval()
    without = Transformer(ModelConfig(**SIZES, **KINDS[kind], flash_attn=flash))
    assert torch.equal(model(ids, ctx)[0], without(ids, ctx)[0])


def test_dropout_acts_on_embedding_attention_and_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real, sdpa = torch.nn.functional.dropout, torch.nn.functional.scaled_dot_product_attention

    def dropout(x: Tensor, p: float, training: bool) -> Tensor:
        calls.append("dropout" if training and p == 0.2 else "none")
        return real(x, p, training)

    def attention(*args: Any, dropout_p: float, **how: Any) -> Tensor:
        calls.append(f"attention {dropout_p}")
        return sdpa(*args, dropout_p=dropout_p, **how)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    ids, _, ctx = packed()
    Transformer(ModelConfig(**SIZES, dropout=0.2))(ids, ctx)
    assert calls == ["dropout", *["attention 0.2", "dropout", "dropout"] * 2]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_stays_near_fp32(kind: str) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind]))
    ids, labels, ctx = packed()
    exact = loss_of(model, ids, labels, ctx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, ids, labels, ctx)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02) and loss.item() != exact.item()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in model.parameters())


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_bf16_weights_run(kind: str) -> None:
    model = Transformer(ModelConfig(**SIZES, **KINDS[kind]))
    ids, labels, ctx = packed()
    exact = loss_of(model, ids, labels, ctx)
    assert loss_of(model.bfloat16(), ids, labels, ctx).item() == pytest.approx(exact.item(), rel=0.02)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", [pytest.param("dense", marks=pytest.mark.slow), "moe"])
def test_the_training_forward_compiles_whole(kind: str) -> None:
    model = Transformer(ModelConfig(**{**SIZES, "n_layers": 1}, **KINDS[kind]))
    ids, labels, ctx = packed()
    torch.compiler.reset()
    results = []
    for run in (model, torch.compile(model, dynamic=False, fullgraph=True)):
        model.zero_grad()
        hidden, stats = run(ids, ctx)
        loss = -token_logps(hidden, model.head_weight, labels).sum() / 16
        (loss if stats is None else loss + stats.balance).backward()
        results.append([hidden, *(each.grad for each in model.parameters())])
        if stats is not None:
            assert stats.load_LE.sum() == 2 * sum(LENGTHS) and stats.rows == 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)
    if kind == "moe":  # another load of the experts is the same graph
        with torch._dynamo.config.patch(error_on_recompile=True):
            run(ids.roll(3), ctx)


def test_the_meta_device_needs_no_memory() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, vocab_size=32000))
    assert all(each.is_meta for each in model.parameters())
