from __future__ import annotations

import numpy as np
import pytest

from mmcli.export.quantize import quantize_columns


def restored(matrix_IO: np.ndarray) -> np.ndarray:
    values_IO, scale_O, zero_O = quantize_columns(matrix_IO)
    return (values_IO.astype(np.float32) - zero_O) * scale_O


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_each_column_is_within_one_step(shift: float) -> None:
    matrix_IO = np.random.default_rng(0).standard_normal((200, 30), dtype=np.float32) * np.logspace(-3, 2, 30) + shift
    _, scale_O, _ = quantize_columns(matrix_IO)
    error_IO = np.abs(restored(matrix_IO) - matrix_IO)
    assert (error_IO <= scale_O * 1.001).all()  # half a step by rounding, half by the zero point
    assert np.median(error_IO / scale_O) < 0.5


def test_zero_and_columns_of_zeros_are_exact() -> None:
    matrix_IO = np.array([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(restored(matrix_IO), matrix_IO, atol=1e-6)
    assert quantize_columns(matrix_IO)[0].dtype == np.uint8
