"""Blocks compared with ONNX Runtime's kernels, and each method checked on what it minimizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.graph.blocks import BlockFormat, Blocks, pack, unpack
from edgecompress.quantize.blockwise import encode, into_blocks, quantize_blocks, refine_half_quadratic, search_scales
from edgecompress.quantize.gptq import feedback, gptq

EPSILON = np.finfo(np.float32).eps
FORMATS = [
    BlockFormat(bits=bits, block_size=block, symmetric=symmetric)
    for bits in (4, 8)
    for block in (32, 64, 128, 256)
    for symmetric in (True, False)
]


def name_of(form: BlockFormat) -> str:
    return f"int{form.bits}-{form.block_size}-{'sym' if form.symmetric else 'asym'}"


def matmul_nbits(blocks: Blocks, x: np.ndarray, accuracy_level: int = 0) -> np.ndarray:
    """x @ weight, computed by the kernel alone."""
    k, n = blocks.width, len(blocks.scales)
    inputs = {"b": blocks.packed, "s": blocks.scales}
    if blocks.zero_points is not None:
        inputs["z"] = blocks.zero_points
    values = {"x": ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", k]))}
    for name, array in inputs.items():
        tensor = ir.tensor(array, name=name)
        values[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
    attributes = {
        "K": k,
        "N": n,
        "bits": blocks.format.bits,
        "block_size": blocks.format.block_size,
        "accuracy_level": accuracy_level,
    }
    return run_node("MatMulNBits", values, attributes, {"x": x}, ["m", n])


def run_node(op: str, values: dict, attributes: dict, feeds: dict, shape: list) -> np.ndarray:
    node = ir.node(op, list(values.values()), attributes=attributes, domain="com.microsoft")
    out = node.outputs[0]
    out.name, out.type, out.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    graph = ir.Graph(
        [values[name] for name in feeds],
        [out],
        nodes=[node],
        initializers=[v for v in values.values() if v.const_value is not None],
        opset_imports={"": 21, "com.microsoft": 1},
        name="one",
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
@pytest.mark.parametrize(("k", "n"), [(256, 33), (600, 5), (129, 7)])
def test_matmul_nbits_matches_dequantize(rng: np.random.Generator, form: BlockFormat, k: int, n: int) -> None:
    weight = (rng.normal(size=(k, n)) + 0.3).astype(np.float32)
    blocks = quantize_blocks(weight, form)
    filled = -(-k // form.block_size)
    assert blocks.packed.shape == (n, filled, form.block_size * form.bits // 8)
    assert blocks.scales.shape == (n, filled)
    if form.symmetric:
        assert blocks.zero_points is None
    else:
        assert blocks.zero_points is not None
        assert blocks.zero_points.shape == (n, -(-filled * form.bits // 8))
    x = rng.normal(size=(3, k)).astype(np.float32)
    back = blocks.dequantize()
    np.testing.assert_array_equal(blocks.rows().T, back)
    # Two sums of k products in other orders: each product and each addition rounds once.
    tolerance = 2 * k * EPSILON * (np.abs(x) @ np.abs(back))
    assert (np.abs(matmul_nbits(blocks, x) - x.astype(np.float64) @ back) <= tolerance).all()


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_int8_inputs_read_the_same_layout(rng: np.random.Generator, form: BlockFormat) -> None:
    weight = (rng.normal(size=(512, 16)) + 0.3).astype(np.float32)
    blocks = quantize_blocks(weight, form)
    x = rng.normal(size=(5, 512)).astype(np.float32)
    back = blocks.dequantize()
    # accuracy_level 4 rounds x to 127 steps of its largest value a block: half a step an input at most.
    filled = into_blocks(x.T, form)
    step = np.abs(filled).max(axis=2, keepdims=True) / 127
    largest = np.broadcast_to(step / 2, filled.shape).reshape(5, -1)[:, :512] @ np.abs(back)
    assert (np.abs(matmul_nbits(blocks, x, accuracy_level=4) - x @ back) <= largest * 1.01).all()


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_gather_block_quantized_reads_the_same_tensor(rng: np.random.Generator, form: BlockFormat) -> None:
    table = (rng.normal(size=(50, 512)) + 0.3).astype(np.float32)
    blocks = quantize_blocks(table.T, form)
    arrays = {"table": blocks.packed, "ids": None, "scales": blocks.scales[:, :, None]}
    if blocks.zero_points is not None:
        arrays["zeros"] = np.ascontiguousarray(blocks.zeros()[:, :, None])
    values = {}
    for name, array in arrays.items():
        if array is None:
            values[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "t"]))
            continue
        tensor = ir.tensor(array, name=name)
        values[name] = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
    attributes = {"bits": form.bits, "block_size": form.block_size, "gather_axis": 0, "quantize_axis": 2}
    ids = rng.integers(0, 50, (2, 9))
    shape = ["b", "t", 512 // form.block_size, form.block_size]
    got = run_node("GatherBlockQuantized", values, attributes, {"ids": ids}, shape)
    np.testing.assert_allclose(got.reshape(2, 9, 512), blocks.dequantize().T[ids], rtol=2 * EPSILON)


def squared_error(weight: np.ndarray, blocks: Blocks) -> float:
    return float(np.square(weight.astype(np.float64) - blocks.dequantize()).sum())


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_beats_the_plain_range(rng: np.random.Generator, symmetric: bool) -> None:
    weight = rng.standard_t(4, size=(512, 64)).astype(np.float32)
    form = BlockFormat(bits=4, block_size=128, symmetric=symmetric)
    rows = into_blocks(weight, form)
    if symmetric:
        largest = np.abs(rows).argmax(2)[:, :, None]
        scale = np.take_along_axis(rows, largest, 2) / -8
        zero = np.full_like(scale, 8)
    else:
        low, high = rows.min(2, keepdims=True), rows.max(2, keepdims=True)
        scale = (high - low) / 15
        zero = np.clip(np.rint(-low / scale), 0, 15)
    plain = np.square((encode(rows, scale, zero, form) - zero) * scale - rows).sum()
    assert squared_error(weight, quantize_blocks(weight, form)) < 0.95 * plain


def test_zero_points_pay_where_weights_lie_on_one_side(rng: np.random.Generator) -> None:
    weight = rng.uniform(-0.1, 1.0, size=(256, 32)).astype(np.float32)
    errors = [
        squared_error(weight, quantize_blocks(weight, BlockFormat(bits=4, block_size=64, symmetric=symmetric)))
        for symmetric in (True, False)
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_eight_bits_are_half_a_step_off_at_most_and_four_bits_a_clip(
    rng: np.random.Generator, form: BlockFormat
) -> None:
    weight = rng.normal(size=(512, 8)).astype(np.float32)
    blocks = quantize_blocks(weight, form)
    off = np.abs(into_blocks(weight - blocks.dequantize(), form)) / np.abs(blocks.scales[:, :, None])
    assert off.mean() < 0.3
    if form.bits == 8:
        assert off.max() < 1.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_hqq_lowers_the_norm_it_minimizes_in_every_block(rng: np.random.Generator, symmetric: bool) -> None:
    form = BlockFormat(bits=4, block_size=64, symmetric=symmetric)
    rows = into_blocks(rng.standard_t(3, size=(512, 64)).astype(np.float32), form)
    scale, zero = search_scales(rows, form)
    refined_scale, refined_zero = refine_half_quadratic(rows, scale, zero, form)
    assert (refined_zero == np.rint(refined_zero)).all()

    def norm(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        error = np.abs((encode(rows, scale, zero, form) - zero) * scale - rows).astype(np.float64)
        return (error**0.7).sum(2)

    before, after = norm(scale, zero), norm(refined_scale, refined_zero)
    assert (after <= before * 1.0001).all()
    assert after.mean() < 0.99 * before.mean()


def correlated(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Activations whose channels depend on each other, with a few large ones, as a decoder's do."""
    mixed = rng.normal(size=(rows, width // 4)) @ rng.normal(size=(width // 4, width))
    x = mixed + 0.3 * rng.normal(size=(rows, width))
    x[:, :: width // 8] *= 8
    return x.astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 128, 256])
def test_gptq_lowers_the_error_of_the_output(rng: np.random.Generator, block: int, symmetric: bool) -> None:
    x, unseen = np.split(correlated(rng, 2048, 300), 2)  # 300: the last block is not full
    weight = rng.normal(size=(300, 40)).astype(np.float32)
    form = BlockFormat(bits=4, block_size=block, symmetric=symmetric)
    rounded = quantize_blocks(weight, form)
    found = gptq(weight, x.T @ x / len(x), form)
    errors = [np.linalg.norm(unseen @ (weight - blocks.dequantize())) for blocks in (rounded, found)]
    assert errors[1] < 0.6 * errors[0]
    np.testing.assert_allclose(matmul_nbits(found, unseen), unseen @ found.dequantize(), rtol=1e-3, atol=1e-2)


def test_gptq_of_independent_inputs_is_rounding_to_nearest(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(256, 24)).astype(np.float32)
    form = BlockFormat(bits=4, block_size=64)
    rounded, found = quantize_blocks(weight, form), gptq(weight, np.eye(256, dtype=np.float32), form)
    np.testing.assert_array_equal(found.scales, rounded.scales)
    np.testing.assert_array_equal(found.codes(), rounded.codes())


def test_gptq_handles_dead_and_dependent_channels(rng: np.random.Generator) -> None:
    x = rng.normal(size=(16, 64)).astype(np.float32)  # 16 rows: the Hessian has rank 15 at most
    x[:, 5] = 0.0
    weight = rng.normal(size=(64, 12)).astype(np.float32)
    found = gptq(weight, x.T @ x, BlockFormat(bits=8, block_size=32))
    assert np.isfinite(found.scales).all()
    step = np.abs(found.scales[:, 0])
    assert (np.abs(found.dequantize()[5] - weight[5]) <= step * 0.51).all()


def test_gptq_refuses_wrong_shapes(rng: np.random.Generator) -> None:
    weight = np.ones((8, 2), dtype=np.float32)
    form = BlockFormat(bits=4, block_size=32)
    with pytest.raises(ValueError, match="8 inputs"):
        gptq(weight, np.eye(4, dtype=np.float32), form)
    with pytest.raises(ValueError, match="not finite"):
        gptq(weight, np.full((8, 8), np.nan, dtype=np.float32), form)


@pytest.mark.parametrize("size", [3, 256, 700])
def test_the_feedback_factors_the_hessian(rng: np.random.Generator, size: int) -> None:
    x = rng.normal(size=(4 * size, size)).astype(np.float32)
    hessian = x.T @ x / len(x)
    upper = feedback(hessian, 0.01).astype(np.float64)
    assert (np.tril(upper, -1) == 0).all()
    assert (np.diagonal(upper) == 1).all()
    damped = hessian.astype(np.float64) + 0.01 * np.diagonal(hessian).mean() * np.eye(size)
    inverse = np.linalg.inv(upper)
    within = inverse @ damped @ inverse.T  # diagonal, if the factor is that of the matrix
    assert np.abs(within - np.diag(np.diagonal(within))).max() < 2e-5 * np.diagonal(within).max()


def test_gptq_rounds_as_its_paper_says(rng: np.random.Generator) -> None:
    """The same codes as channel by channel with the inverse of the remaining Hessian, in float64."""
    x = correlated(rng, 512, 96)
    weight, form = rng.normal(size=(96, 20)).astype(np.float32), BlockFormat(bits=4, block_size=32)
    hessian = x.T @ x / len(x)
    found = gptq(weight, hessian, form)
    codes, scales = np.empty((96, 20)), np.repeat(found.scales.astype(np.float64), 32, axis=1).T
    inverse = np.linalg.inv(hessian.astype(np.float64) + 0.01 * np.diagonal(hessian).mean() * np.eye(96))
    left, moved = np.argsort(-np.diagonal(hessian), kind="stable"), weight.astype(np.float64)
    while len(left):
        i = left[0]
        codes[i] = np.clip(np.rint(moved[i] / scales[i]) + 8, 0, 15)
        error = (moved[i] - (codes[i] - 8) * scales[i]) / inverse[i, i]
        moved[left] -= inverse[left, i][:, None] * error
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        left = left[1:]
    assert (codes == found.codes().reshape(20, 96).T).mean() > 0.995  # float32 may round a border case otherwise


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_slicing_does_not_change_results_and_bytes_repeat(rng: np.random.Generator, method: str) -> None:
    weight = rng.normal(size=(1024, 1500)).astype(np.float32)  # six slices of columns
    form = BlockFormat(bits=4, block_size=128, symmetric=False)
    whole, again = quantize_blocks(weight, form, method), quantize_blocks(np.asfortranarray(weight), form, method)
    part = quantize_blocks(weight[:, 700:701], form, method)
    for a, b in ((whole, again), (part, None)):
        c = b or whole
        chosen = slice(None) if b else slice(700, 701)
        assert a.packed.tobytes() == c.packed[chosen].tobytes()
        assert a.scales.tobytes() == c.scales[chosen].tobytes()
        assert a.zero_points is not None
        assert c.zero_points is not None
        assert a.zero_points.tobytes() == c.zero_points[chosen].tobytes()


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros_and_one_value_comes_back(method: str, symmetric: bool) -> None:
    weight = np.zeros((64, 3), dtype=np.float32)
    weight[:, 1] = -0.25
    weight[7, 2] = 1e-20
    blocks = quantize_blocks(weight, BlockFormat(bits=4, block_size=32, symmetric=symmetric), method)
    assert np.isfinite(blocks.scales).all()
    np.testing.assert_allclose(blocks.dequantize(), weight, rtol=2**-11, atol=1e-6)  # a scale has float16's digits


def test_half_precision_is_read_as_it_is(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(96, 10)).astype(np.float16)
    form = BlockFormat(bits=4, block_size=32)
    half, single = quantize_blocks(weight, form), quantize_blocks(weight.astype(np.float32), form)
    assert half.packed.tobytes() == single.packed.tobytes()
    assert half.scales.dtype == np.float32


@pytest.mark.parametrize("length", [1, 2, 7, 32])
def test_packing_is_undone(rng: np.random.Generator, length: int) -> None:
    codes = rng.integers(0, 16, (3, 5, length), dtype=np.uint8)
    packed = pack(codes, 4)
    assert packed.shape == (3, 5, -(-length // 2))
    np.testing.assert_array_equal(unpack(packed, 4)[..., :length], codes)
    assert packed[0, 0, 0] & 15 == codes[0, 0, 0]  # the first in the low half


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_scales_are_float16_numbers(method: str, symmetric: bool, rng: np.random.Generator) -> None:
    form = BlockFormat(bits=4, block_size=32, symmetric=symmetric)
    scales = quantize_blocks(rng.normal(size=(96, 10)).astype(np.float32), form, method).scales
    assert np.array_equal(scales, scales.astype(np.float16))
    tiny = quantize_blocks((1e-7 * rng.normal(size=(96, 10))).astype(np.float32), form, method)
    assert not np.array_equal(tiny.scales, tiny.scales.astype(np.float16))  # kept whole: float16 has few digits there
    assert np.abs(tiny.dequantize()).max() > 1e-7


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_positive_scales_are_positive_and_nearly_as_good(method: str, rng: np.random.Generator) -> None:
    weight = rng.normal(size=(256, 24)).astype(np.float32)
    form = BlockFormat(bits=4, block_size=64)
    free = quantize_blocks(weight, form, method)
    bound = quantize_blocks(weight, replace(form, positive_scales=True), method)
    assert (free.scales < 0).any()
    assert (bound.scales > 0).all()
    error = [float(np.square(blocks.dequantize() - weight).mean()) for blocks in (free, bound)]
    assert error[1] <= 1.25 * error[0]
