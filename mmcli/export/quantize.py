"""Weights in blocks of a few bits, as ONNX Runtime's MatMulNBits stores them.

A block is `block` neighbouring input features of one output feature, and has a scale:
weight ~ (value - 2 ** (bits - 1)) * scale. The last block of a row is filled up with zeros.

Shapes: O features out, I features in, N blocks of a row, b features of a block, R rows of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLIPS = np.linspace(1.05, 0.65, 9, dtype=np.float32)  # shares of a block's range that its 4-bit values are spread over
PART = 1 << 18  # weights that are searched at once: they stay in the cache of a core
SMALLEST_HALF = float(np.finfo(np.float16).smallest_normal)  # below it fp16 loses digits
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Blocks:
    """A matrix [O, I] in blocks."""

    values_ONb: np.ndarray  # uint8; of two 4-bit values in a byte the first is the lower half
    scales_ON: np.ndarray  # float16, or float32 where fp16 would lose digits

    def signed_OI(self, bits: int) -> np.ndarray:
        """int8, filled up to whole blocks: the values around 0, one a place."""
        values_ONb = self.values_ONb
        if bits == 4:
            values_ONb = np.stack([values_ONb & 15, values_ONb >> 4], axis=-1)
        return (values_ONb.reshape(len(values_ONb), -1).astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def quantize_blocks(matrix_OI: np.ndarray, *, bits: int, block: int, power_I: np.ndarray | None = None) -> Blocks:
    """The matrix in `bits` (4 or 8) bits a weight.

    8 bits are rounded to the nearest. In 4 bits a block takes, of several scales, the one with the least squared error,
    and then the scale that fits its rounded values best.

    Args:
        power_I: the weight of an error in 4 bits, by input feature; None: 1.
    """
    n_out, n_in = matrix_OI.shape
    n_blocks = -(-n_in // block)
    w_RNb = _in_blocks(matrix_OI, n_blocks, block)
    power_Nb = _in_blocks(np.ones((1, n_in)) if power_I is None else power_I[None], n_blocks, block)[0]
    values_RNb = np.empty(w_RNb.shape, dtype=np.uint8)
    scales_RN = np.empty(w_RNb.shape[:2], dtype=np.float32)
    rows_at_once = max(1, PART // (n_blocks * block))
    for start in range(0, n_out, rows_at_once):
        rows = slice(start, start + rows_at_once)
        values_RNb[rows], scales_RN[rows] = _rounded(w_RNb[rows]) if bits == 8 else _searched(w_RNb[rows], power_Nb)
    return Blocks(values_RNb if bits == 8 else _packed(values_RNb), _small(scales_RN))


def _in_blocks(matrix_RI: np.ndarray, n_blocks: int, block: int) -> np.ndarray:
    filled_RI = np.zeros((len(matrix_RI), n_blocks * block), dtype=np.float32)
    filled_RI[:, : matrix_RI.shape[1]] = matrix_RI
    return filled_RI.reshape(len(matrix_RI), n_blocks, block)


def _rounded(w_RNb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, scales) in 8 bits: -127 to 127 around 128."""
    scale_RN = _not_zero(np.abs(w_RNb).max(axis=2) / 127)
    return np.rint(w_RNb / scale_RN[..., None]) + 128, scale_RN


def _searched(w_RNb: np.ndarray, power_Nb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, scales) in 4 bits: -8 to 7 around 8, the largest weight at either end, so a scale may be negative."""
    at_RN1 = np.abs(w_RNb).argmax(axis=2)[..., None]
    largest_RN = np.take_along_axis(w_RNb, at_RN1, axis=2)[..., 0]
    weighted_RNb = w_RNb * power_Nb
    best_RN = np.full(largest_RN.shape, np.inf, dtype=np.float32)
    values_RNb, scales_RN = np.zeros_like(w_RNb), np.ones_like(largest_RN)
    for top in (-8, 7):
        for clip in CLIPS:
            scale_RN = _not_zero(largest_RN * (clip / np.float32(top)))
            value_RNb = np.clip(np.rint(w_RNb / scale_RN[..., None]), -8, 7)
            products_RN = np.einsum("rnb,rnb->rn", value_RNb, weighted_RNb)
            squares_RN = np.einsum("rnb,rnb,nb->rn", value_RNb, value_RNb, power_Nb)
            # With the scale fitted to the values, the squared error is |w|^2 - products^2 / squares.
            fits_RN = squares_RN > 0.0
            error_RN = np.where(fits_RN, -(products_RN**2) / np.where(fits_RN, squares_RN, 1.0), 0.0)
            better_RN = error_RN < best_RN
            fitted_RN = np.where(fits_RN, products_RN / np.where(fits_RN, squares_RN, 1.0), scale_RN)
            best_RN[better_RN], scales_RN[better_RN] = error_RN[better_RN], fitted_RN[better_RN]
            values_RNb[better_RN] = value_RNb[better_RN]
    return values_RNb + 8, _not_zero(scales_RN)


def _not_zero(scales: np.ndarray) -> np.ndarray:
    """1 for blocks of zeros."""
    return np.where(scales != 0.0, scales, 1.0).astype(np.float32)


def _small(scales_ON: np.ndarray) -> np.ndarray:
    """In fp16, which rounds a scale by a share of 2 ** -11, where every scale is among its normal numbers."""
    sizes_ON = np.abs(scales_ON)
    fits = float(sizes_ON.min()) >= SMALLEST_HALF and float(sizes_ON.max()) <= LARGEST_HALF
    return scales_ON.astype(np.float16) if fits else scales_ON


def _packed(values: np.ndarray) -> np.ndarray:
    """Two 4-bit numbers a byte along the last axis."""
    packed: np.ndarray = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed
