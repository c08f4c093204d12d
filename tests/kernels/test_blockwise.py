"""MatMulBlocks against float64, on odd shapes, and one row against the same row among many."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_kernels.cpu.build import Matmul
from edgecompress_kernels.cpu.packing import pack_lanes, pack_weights
from edgecompress_kernels.reference import block_weights, quantized_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.ops import MATMULS, matmul

NAMES = [f"int{m.bits}-{m.block}{'-zero-points' * m.zero_points}{'-half' * m.half}" for m in MATMULS]


def weights_of(kind: Matmul, n: int, k: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    blocks = k // kind.block
    packed = rng.integers(0, 256, (n, blocks, kind.block * kind.bits // 8), dtype=np.uint8)
    scales = (rng.standard_normal((n, blocks)) / k).astype(np.float16 if kind.half else np.float32)
    zeros = rng.integers(0, 1 << kind.bits, (n, blocks), dtype=np.uint8) if kind.zero_points else None
    return packed, scales, zeros


def laid_out(kind: Matmul, packed: Any, scales: Any, zeros: Any) -> dict[str, Any]:
    given_arrays = {"w": pack_weights(packed, kind.bits), "s": pack_lanes(scales)}
    return given_arrays | ({"z": pack_lanes(zeros)} if zeros is not None else {})


@pytest.mark.parametrize("kind", MATMULS, ids=NAMES)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 13, 33])
@pytest.mark.parametrize("n", [1, 16, 37])
def test_products_are_those_of_float64(
    library: Path, kind: Matmul, rows: int, n: int, rng: np.random.Generator
) -> None:
    k = 3 * kind.block
    packed, scales, zeros = weights_of(kind, n, k, rng)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    session = matmul(library, kind, {**laid_out(kind, packed, scales, zeros), "b": bias}, k, n, bias=True)
    found = session.run(None, {"x": x})[0]
    expected = quantized_rows(x, kind.block) @ block_weights(packed, scales, zeros, kind.bits).T + bias
    assert found.shape == (rows, n)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * max(1.0, float(np.abs(expected).max())))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 20), n=st.integers(1, 70), blocks=st.integers(1, 5), seed=st.integers(0, 99), lead=st.booleans()
)
def test_any_shape(library: Path, rows: int, n: int, blocks: int, seed: int, lead: bool) -> None:
    rng = np.random.default_rng(seed)
    kind, k = MATMULS[seed % len(MATMULS)], blocks * MATMULS[seed % len(MATMULS)].block
    packed, scales, zeros = weights_of(kind, n, k, rng)
    x = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    x[: rows // 3] = 0
    session = matmul(library, kind, laid_out(kind, packed, scales, zeros), k, n)
    found = session.run(None, {"x": x[None] if lead else x})[0]
    inputs, weights = quantized_rows(x, kind.block), block_weights(packed, scales, zeros, kind.bits)
    expected = inputs @ weights.T
    # Float32's bound of a sum: a rounding for each block, and for the scales, of all that is added up.
    bound = (blocks + 3) * 2.0**-24 * (np.abs(inputs) @ np.abs(weights).T)
    assert found.shape == ((1, rows, n) if lead else (rows, n))
    assert (np.abs(found.reshape(rows, n) - expected) <= bound).all()


@pytest.mark.parametrize("kind", MATMULS, ids=NAMES)
def test_a_row_among_many_is_bit_for_bit_the_row_alone(library: Path, kind: Matmul, rng: np.random.Generator) -> None:
    k, n = 2 * kind.block, 50
    session = matmul(library, kind, laid_out(kind, *weights_of(kind, n, k, rng)), k, n)
    x = rng.standard_normal((15, k)).astype(np.float32)
    together = session.run(None, {"x": x})[0]
    for i in range(len(x)):
        assert np.array_equal(session.run(None, {"x": x[i : i + 1]})[0][0], together[i])


def test_sessions_share_a_library(library: Path, rng: np.random.Generator) -> None:
    kind, k, n = MATMULS[0], 64, 40
    sessions, wanted = [], []
    x = rng.standard_normal((5, k)).astype(np.float32)
    for _ in range(4):
        session = matmul(library, kind, laid_out(kind, *weights_of(kind, n, k, rng)), k, n)
        sessions.append(session)
        wanted.append(session.run(None, {"x": x})[0])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(lambda s: s.run(None, {"x": x})[0], sessions), wanted, strict=True):
                assert np.array_equal(found, expected)


def test_bad_shapes_come_back_as_messages(library: Path, rng: np.random.Generator) -> None:
    kind, k, n = MATMULS[0], 64, 40
    packed = laid_out(kind, *weights_of(kind, n, k, rng))
    session = matmul(library, kind, packed, k, n)
    with pytest.raises(Exception, match="last dimension of A must be K"):
        session.run(None, {"x": np.zeros((2, 32), dtype=np.float32)})
    with pytest.raises(Exception, match="do not have the size of K and N"):
        matmul(library, kind, packed, k, 80).run(None, {"x": np.zeros((2, k), dtype=np.float32)})
    with pytest.raises(Exception, match="K must be a multiple of block_size"):
        matmul(library, kind, packed, 65, n)
    other = Matmul(bits=4, block=16)
    arrays = laid_out(other, *weights_of(other, n, k, rng))
    session = matmul(library, other, arrays, k, n)
    with pytest.raises(Exception, match="no kernel for these bits and block_size"):
        session.run(None, {"x": np.zeros((2, k), dtype=np.float32)})


def test_weights_of_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or 8 bits"):
        pack_weights(np.zeros((1, 1, 16), dtype=np.uint8), 2)
