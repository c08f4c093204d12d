"""A few products, attentions and layers that every instruction set must get right: models, feeds, float64 outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from edgecompress_kernels.cpu.build import Attention, Matmul, build
from edgecompress_kernels.cpu.isa import Isa
from edgecompress_kernels.reference import block_weights, encoder_layer, quantized_rows

from tests.kernels import layer_ops, test_attention_int8
from tests.kernels.encoder_ops import EPSILON, layer_model, random_layer
from tests.kernels.ops import ENCODERS, attention_model, matmul_model, session
from tests.kernels.test_attention import expected_of, feeds_of
from tests.kernels.test_blockwise import laid_out, weights_of

MATMULS = (
    Matmul(bits=4, block=32),
    Matmul(bits=4, block=64, zero_points=True, half=True),
    Matmul(bits=8, block=32, zero_points=True),
    Matmul(bits=8, block=128, half=True),
)
SHAPES = (  # tokens, past, window, head size, turned
    (1, 37, -1, 64, 64),
    (1, 1100, 600, 80, 64),
    (5, 600, -1, 64, 0),
    (40, 0, 9, 80, 0),
)
HEADS, KV_HEADS = 6, 2
LAYERS = tuple(kind for kind in ENCODERS if kind.hidden < 100)  # one of weights of 8 bits, one of 7

Expected = dict[str, tuple[Any, float]]
"""Name of a case -> its output in float64, and the tolerance."""


def library_for(isa: Isa, folder: Path) -> Path:
    """All that the cases need, built for ``isa``."""
    path = folder / f"{isa.name}.so"
    attentions = [Attention(head_size=size, int8=int8) for size in (64, 80) for int8 in (False, True)]
    path.write_bytes(build(MATMULS, attentions, isa, LAYERS))
    return path


def write_cases(folder: Path) -> Expected:
    """NAME.onnx and NAME.npz, its feeds, for each case."""
    rng, expected = np.random.default_rng(7), {}
    for kind in MATMULS:
        k, n, rows = 3 * kind.block, 37, 7  # four rows, two and one
        packed, scales, zeros = weights_of(kind, n, k, rng)
        packed[0], packed[1] = 255, 0
        x = rng.standard_normal((rows, k)).astype(np.float32)
        x[0], x[1] = 1, -1  # products as large as they can be, all of one sign
        (folder / f"{kind.name}.onnx").write_bytes(matmul_model(kind, laid_out(kind, packed, scales, zeros), k, n))
        np.savez(folder / f"{kind.name}.npz", x=x)
        right = quantized_rows(x, kind.block) @ block_weights(packed, scales, zeros, kind.bits).T
        expected[kind.name] = right, 2e-6 * max(1.0, float(np.abs(right).max()))
    for tokens, past, window, size, rotary in SHAPES:
        name = f"attention_{size}_{tokens}_{past}"
        feeds = feeds_of(rng, 1, tokens, [past], HEADS, KV_HEADS, size, rotary)
        model = attention_model(heads=HEADS, kv_heads=KV_HEADS, size=size, rotary=rotary, window=window)
        (folder / f"{name}.onnx").write_bytes(model)
        np.savez(folder / f"{name}.npz", **feeds)
        expected[name] = expected_of(feeds, [past], HEADS, KV_HEADS, size, window)[0], 3e-6
        name = f"attention_int8_{size}_{tokens}_{past}"
        feeds = test_attention_int8.feeds_of(np.random.default_rng(8), tokens, [past], HEADS, KV_HEADS, size, rotary)
        model = attention_model(heads=HEADS, kv_heads=KV_HEADS, size=size, rotary=rotary, window=window, int8=True)
        (folder / f"{name}.onnx").write_bytes(model)
        np.savez(folder / f"{name}.npz", **feeds)
        expected[name] = test_attention_int8.exact_of(feeds, past, HEADS, KV_HEADS, size, window)
    decoder = layer_ops.layer_model(np.random.default_rng(9))
    feeds = layer_ops.layer_feeds(np.random.default_rng(10), 3, 530)
    (folder / "decoder_layer.onnx").write_bytes(layer_ops.joined(decoder).SerializeToString())
    np.savez(folder / "decoder_layer.npz", **feeds)
    right = layer_ops.exact_layer(decoder, feeds, 530)
    expected["decoder_layer"] = right, 0.05 * float(np.sqrt(np.mean(right**2)))  # a rounding may fall the other way
    for kind in LAYERS:
        starts = np.array([0, 1, 1, 38, 44])
        x, layer = rng.standard_normal((44, kind.hidden)).astype(np.float32), random_layer(kind, rng, smooth=True)
        exact, plain = (
            encoder_layer(x, layer, kind.heads, starts, kind.head_size**-0.5, EPSILON, rounded)
            for rounded in (False, True)
        )
        (folder / f"{kind.name}.onnx").write_bytes(layer_model(kind, layer, smooth=True))
        np.savez(folder / f"{kind.name}.npz", x=x, starts=starts)
        expected[kind.name] = exact, 6 * float(np.sqrt(np.mean((plain - exact) ** 2)))  # the largest of thousands
    return expected


def run_cases(folder: Path, library: Path) -> dict[str, Any]:
    """Name -> output, on this machine."""
    found = {}
    for path in folder.glob("*.onnx"):
        with np.load(path.with_suffix(".npz")) as feeds:
            found[path.stem] = session(path.read_bytes(), library, 2).run(["y"], dict(feeds))[0]
    return found


def check(found: dict[str, Any], expected: Expected, others: dict[str, Any]) -> None:
    """Each output is that of float64, and bit for bit that of another instruction set."""
    assert found.keys() == expected.keys()
    for name, (right, tolerance) in expected.items():
        np.testing.assert_allclose(found[name], right, rtol=0, atol=tolerance, err_msg=name)
        if others:
            assert np.array_equal(found[name], others[name]), name
