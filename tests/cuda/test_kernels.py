"""Every path of computation on a device against the plain fp32 one on the CPU. On the CPU they run in every test run;
on CUDA with `make test-cuda`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcli.model.attention import AttnContext, choose_kernel
from mmcli.model.config import ModelConfig
from mmcli.model.grouped import grouped_linear
from mmcli.model.transformer import Transformer
from mmcli.train.config import OptimConfig
from mmcli.train.device import Accelerator, can_compile
from mmcli.train.lm import TokenBatch, language_model_loss
from mmcli.train.optim import build_optimizer
from mmcli.train.speed import product_rates

NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")]
CUDA = pytest.param("cuda", marks=NEEDS_CUDA)
DEVICES = ["cpu", CUDA]
TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}
SHAPE: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128, "max_seq_len": 64}


def packed(config: ModelConfig, *, pin: bool = False) -> TokenBatch:
    """Two rows of 48 tokens: three documents and padding, and one document."""
    from mmcli.data.pack.batches import Batch

    draws = np.random.default_rng(0).integers(0, config.vocab_size, (2, 49))
    segments = np.zeros((2, 48), dtype=np.int64)
    segments[0] = np.repeat([0, 1, 2, -1], [10, 17, 15, 6])
    positions = np.stack([np.concatenate([np.arange(n) for n in (10, 17, 15, 6)]), np.arange(48)])
    labels = np.where(segments < 0, -100, draws[:, 1:])
    return TokenBatch.from_batch(Batch(draws[:, :-1].copy(), labels, positions, segments), config, pin=pin)


def gradients(
    config: ModelConfig, device: str, precision: str, *, compiled: bool = False
) -> tuple[float, list[Tensor]]:
    """(loss, gradients on the CPU) of one batch."""
    accelerator = Accelerator(torch.device(device), precision)
    model = Transformer(config, seed=1).to(accelerator.device)
    batch = packed(config, pin=accelerator.pins_memory).to(accelerator.device)
    forward = torch.compile(model, dynamic=False) if compiled else model
    with accelerator.autocast():
        out = language_model_loss(forward, batch, config)
    loss = torch.stack([term.coef * term.sum / term.count for term in out.terms.values()]).sum()
    loss.backward()
    return float(loss.detach()), [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]


def assert_near(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]], tolerance: float) -> None:
    """Equal up to `tolerance`, for gradients relative to the norm of each."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for one, other in zip(found[1], expected[1], strict=True):
        assert float((one - other).norm()) <= 2 * tolerance * float(other.norm()) + 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("flash", [True, False], ids=["fused", "plain"])
def test_a_dense_model_computes_the_same(device: str, precision: str, flash: bool) -> None:
    """On CUDA bf16 is varlen FlashAttention, fp32 SDPA with a mask."""
    reference = gradients(ModelConfig(**SHAPE, flash_attn=False), "cpu", "fp32")
    assert_near(gradients(ModelConfig(**SHAPE, flash_attn=flash), device, precision), reference, TOLERANCE[precision])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [None, 8])
def test_a_sliding_window_is_the_same_in_every_kernel(device: str, window: int | None) -> None:
    reference = gradients(ModelConfig(**SHAPE, sliding_window=window, flash_attn=False), "cpu", "fp32")
    found = gradients(ModelConfig(**SHAPE, sliding_window=window), device, "bf16")
    assert_near(found, reference, TOLERANCE["bf16"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_products_are_those_of_each_expert(device: str, dtype: torch.dtype) -> None:
    """An idle expert included: it has a gradient of zero."""
    counts = [5, 0, 24, 3]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(counts), 16, generator=generator)
    weight = torch.randn(len(counts), 24, 16, generator=generator)
    found = [each.to(device, dtype).requires_grad_() for each in (x, weight)]
    grouped_linear(*found, torch.tensor(counts, device=device)).square().sum().backward()
    plain = [each.to(dtype).float().requires_grad_() for each in (x, weight)]
    parts = [part @ matrix.t() for part, matrix in zip(plain[0].split(counts), plain[1], strict=True)]
    torch.cat(parts).square().sum().backward()
    for one, other in zip(found, plain, strict=True):
        assert one.grad is not None and other.grad is not None
        near = TOLERANCE["bf16" if dtype == torch.bfloat16 else "fp32"]
        assert float((one.grad.float().cpu() - other.grad).norm()) <= near * float(other.grad.norm())
    assert not found[1].grad[1].any()  # type: ignore[index]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_updates_the_same(device: str, name: str) -> None:
    """Three updates of fused AdamW, and of Muon, by the same gradients."""

    def updated(where: str) -> list[Tensor]:
        model = Transformer(ModelConfig(**SHAPE), seed=1).to(where)
        optimizer = build_optimizer(model, OptimConfig(optimizer=name, lr=1e-2))  # type: ignore[arg-type]
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(where)
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    for one, other in zip(updated(device), updated("cpu"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_mixture_of_experts_computes_the_same(device: str) -> None:
    """In fp32: in bf16 a router may choose another expert where two are nearly level."""
    config = ModelConfig(**SHAPE, use_moe=True)
    reference = gradients(ModelConfig(**SHAPE, use_moe=True, flash_attn=False), "cpu", "fp32")
    assert_near(gradients(config, device, "fp32"), reference, TOLERANCE["fp32"])


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_a_compiled_model_computes_the_same(device: str) -> None:
    if not can_compile(torch.device(device)):
        pytest.skip("torch.compile has no compiler here")
    reference = gradients(ModelConfig(**SHAPE, flash_attn=False), "cpu", "fp32")
    assert_near(gradients(ModelConfig(**SHAPE), device, "fp32", compiled=True), reference, TOLERANCE["fp32"])


@pytest.mark.parametrize("device", [CUDA])
def test_packed_rows_take_flash_attention_on_a_gpu_that_has_it(device: str) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs compute capability 8.0")
    ctx: AttnContext = packed(ModelConfig(**SHAPE)).to(torch.device(device)).ctx
    if not ctx.varlen:
        pytest.skip("this torch has no variable-length attention of grouped queries")
    kernel = choose_kernel(ctx, flash=True, dropout_p=0.0, window=None, dtype=torch.bfloat16, head_dim=16)
    assert kernel == "varlen"


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_with_bf16_units_is_measured_to_be_quicker_in_it(device: str) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    rates = product_rates(torch.device(device))
    assert rates["bf16"] > 1.3 * rates["fp32"]
