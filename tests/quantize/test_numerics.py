"""Quantization arithmetic, compared with its definition."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.quantize.numerics import (
    fake_quantize_uint8,
    per_column_int8,
    per_row_int8,
    range_to_int8,
    range_to_uint8,
)


def test_per_column_error_is_at_most_half_a_step(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(63, 17)).astype(np.float32) * rng.uniform(0.01, 10, 17).astype(np.float32)
    quantized, scale = per_column_int8(weight)
    assert quantized.dtype == np.int8
    assert scale.shape == (17,)
    assert np.abs(quantized).max() == 127
    assert (np.abs(quantized * scale - weight) <= scale / 2 + 1e-6).all()


def test_seven_bits_cannot_saturate_a_pair_of_products(rng: np.random.Generator) -> None:
    quantized, _ = per_column_int8(rng.normal(size=(64, 8)).astype(np.float32), bits=7)
    largest_pair = 2 * 255 * int(np.abs(quantized.astype(int)).max())
    assert largest_pair <= 32767


def test_a_column_of_zeros_stays_zero() -> None:
    quantized, scale = per_column_int8(np.zeros((4, 2), dtype=np.float32))
    assert not quantized.any()
    assert np.isfinite(scale).all()


def test_per_row_scales_are_per_row(rng: np.random.Generator) -> None:
    table = rng.normal(size=(10, 6)).astype(np.float32) * np.arange(1, 11, dtype=np.float32)[:, None]
    quantized, scale = per_row_int8(table)
    assert scale.shape == (10, 1)
    assert np.abs(quantized * scale - table).max() <= scale.max() / 2 + 1e-6


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    scale, zero_point = range_to_uint8(low, high)
    x = np.array([0.0, low, high], dtype=np.float32)
    back = fake_quantize_uint8(x, scale, zero_point)
    assert back[0] == 0.0
    assert np.abs(back - x).max() <= float(scale)


def test_half_scales_are_float16_numbers_and_round_as_well() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 40)).astype(np.float32)
    weight[:, 0] *= 1e-9  # its scale is below float16's normal numbers
    weight[:, 1] = 0
    codes, scale = per_column_int8(weight, half_scales=True)
    assert np.array_equal(scale.astype(np.float16).astype(np.float32), scale)
    assert (scale >= np.finfo(np.float16).smallest_normal).all()
    error = np.abs(codes * scale - weight).max(axis=0)
    assert (error <= scale * (0.5 + 127 * 2**-11)).all()  # half a step, and what the largest code is off by


@pytest.mark.parametrize(("low", "high"), [(-3.0, 1.0), (-1.0, 3.0), (0.0, 3.0), (-3.0, -2.0)])
def test_a_symmetric_range_covers_its_farther_end(low: float, high: float) -> None:
    scale = range_to_int8(low, high)
    assert float(np.float16(scale)) == scale
    assert 127 * scale == pytest.approx(3.0, rel=2**-10)


def test_an_empty_range_has_a_scale() -> None:
    assert range_to_int8(0.0, 0.0) == 1.0
