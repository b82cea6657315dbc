"""Weights in 8 bits: one scale and one zero point for every output feature."""

from __future__ import annotations

import numpy as np


def quantize_columns(matrix_IO: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values_IO uint8, scale_O float32, zero_O uint8): matrix ~ (values - zero) * scale, column by column.

    The range of a column always holds 0, so that 0 is exact. Asymmetric uint8 had the least error of the kinds that
    ONNX Runtime multiplies on the CPU.
    """
    low_O = np.minimum(matrix_IO.min(axis=0), 0.0)
    high_O = np.maximum(matrix_IO.max(axis=0), 0.0)
    scale_O = ((high_O - low_O) / 255.0).astype(np.float32)
    scale_O[scale_O == 0.0] = 1.0  # a column of zeros
    zero_O = np.clip(np.rint(-low_O / scale_O), 0, 255)
    values_IO = np.clip(np.rint(matrix_IO / scale_O) + zero_O, 0, 255)
    return np.ascontiguousarray(values_IO.astype(np.uint8)), scale_O, zero_O.astype(np.uint8)
