"""Blocks of few bits: what they restore to, by the layout that MatMulNBits documents."""

from __future__ import annotations

import numpy as np
import pytest

from mmcli.export.quantize import Blocks, quantize_blocks


def restored(blocks: Blocks, bits: int, n_in: int) -> np.ndarray:
    values = blocks.values_ONb
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1)
    middle = np.float32(2 ** (bits - 1))
    matrix = (values.astype(np.float32) - middle) * blocks.scales_ON.astype(np.float32)[..., None]
    return matrix.reshape(len(matrix), -1)[:, :n_in]


def random(n_out: int, n_in: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_out, n_in), dtype=np.float32)


@pytest.mark.parametrize("n_in", [32, 40, 96, 176])
def test_eight_bits_are_within_half_a_step(n_in: int) -> None:
    matrix = random(30, n_in) * np.logspace(-3, 2, 30, dtype=np.float32)[:, None]
    blocks = quantize_blocks(matrix, bits=8, block=32)
    assert blocks.values_ONb.shape == (30, -(-n_in // 32), 32)
    step = np.repeat(blocks.scales_ON.astype(np.float32), 32, axis=1)[:, :n_in]
    assert (np.abs(restored(blocks, 8, n_in) - matrix) <= step * 0.57).all()  # and the rounding of the scale to fp16


@pytest.mark.parametrize("n_in", [32, 40, 96, 176])
def test_four_bits_lose_less_than_by_rounding(n_in: int) -> None:
    matrix = random(50, n_in)
    error = restored(quantize_blocks(matrix, bits=4, block=32), 4, n_in) - matrix
    padded = np.pad(matrix, ((0, 0), (0, -n_in % 32))).reshape(-1, 32)
    step = np.abs(padded).max(axis=1, keepdims=True) / 7
    assert np.sum(error**2) < 0.85 * np.sum((np.rint(padded / step) * step - padded) ** 2)


def test_errors_go_where_little_comes_in() -> None:
    matrix, power_I = random(50, 64), np.ones(64, dtype=np.float32)
    power_I[::4] = 100.0
    errors = [
        (restored(quantize_blocks(matrix, bits=4, block=32, power_I=power), 4, 64) - matrix) ** 2
        for power in (None, power_I)
    ]
    assert errors[1][:, ::4].mean() < 0.6 * errors[0][:, ::4].mean()
    assert (errors[1] * power_I).sum() < 0.65 * (errors[0] * power_I).sum()


def test_zero_and_blocks_of_zeros_are_exact() -> None:
    matrix = np.zeros((2, 64), dtype=np.float32)
    matrix[0, :3] = [1.0, 0.0, -2.0]
    for bits in (4, 8):
        found = restored(quantize_blocks(matrix, bits=bits, block=32), bits, 64)
        assert (found[matrix == 0] == 0).all() and found[0, 0] > 0.9 and found[0, 2] < -1.9


def test_scales_that_fp16_cannot_hold_stay_fp32() -> None:
    matrix = random(4, 64)
    assert quantize_blocks(matrix, bits=8, block=32).scales_ON.dtype == np.float16
    for factor in (1e-7, 1e8):
        blocks = quantize_blocks(matrix * np.float32(factor), bits=8, block=32)
        assert blocks.scales_ON.dtype == np.float32
        np.testing.assert_allclose(restored(blocks, 8, 64), matrix * np.float32(factor), atol=0.02 * factor)
