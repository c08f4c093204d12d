"""Lowers ``edgecompress`` quantized ops to standard ops with explicit Q/DQ, placed where engine builders fuse them.

One template per op, all in float32 (:mod:`edgecompress.lower.typed` chooses the types):

- QuantizedLinear: Q and DQ on the input, DQ on the constant weight (int8 with one scale per column, or float8 E4M3 with
  a single scale), then MatMul and Add. All readers of an input share its Q and DQ;
- Rounded, on both inputs of a residual addition: Q and DQ, shared with the layer that reads the same value;
- BlockLinear: DQ on the constant int4 or int8 weight, with one scale per block, or per column if a column is one block;
  the input stays float;
- QuantizedEmbedding: DQ on the constant int8 table, with one scale per row, then Gather, which reads only its rows.

Softmax and norms get no Q/DQ: they compute in a wider type than their inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.blocks import unpack
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant, replace_node
from edgecompress.types.precision import INT8_STATIC

_Shared = dict[tuple[ir.Value, ir.Value], ir.Value]


def lower_to_qdq(model: ir.Model) -> int:
    """Rewrite every quantized op of ``model`` in place; return how many there were. Needs opset 21 or later."""
    shared: _Shared = {}
    nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type in _TEMPLATES]
    for node in nodes:
        _TEMPLATES[node.op_type](model.graph, node, shared)
    return len(nodes)


def _linear(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    x, weight, scale, bias = _given(node, 4)
    if not node.attributes["static"].as_int():
        raise RecipeError(
            f"{node.name}: Q/DQ needs activations with calibrated scales",
            hint=f"Use --precision {INT8_STATIC}.",
        )
    x_scale, zero_point = _given(node, 6)[4:]
    rounded = _rounded(graph, node, (x, x_scale, zero_point), shared)
    stem = _stem(node)
    assert scale.shape is not None
    how = {"axis": 1} if len(scale.shape) else {}  # one scale per column, or one for all
    columns = ir.node("DequantizeLinear", [weight, scale], how, name=f"{stem}/weight/DequantizeLinear")
    product = ir.node("MatMul", [rounded, columns.outputs[0]], name=f"{stem}/MatMul")
    graph.insert_before(node, [columns, product])
    _typed_like(product.outputs[0], node.outputs[0])
    replace_node(graph, node, ir.node("Add", [product.outputs[0], bias], name=f"{stem}/Add"))


def _round(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    x, scale, zero_point = _given(node, 3)
    ir.convenience.replace_all_uses_with(node.outputs[0], _rounded(graph, node, (x, scale, zero_point), shared))
    graph.remove(node, safe=True)


def _block_linear(graph: ir.Graph, node: ir.Node, _: _Shared) -> None:
    x, packed, scales, zeros, bias = [*node.inputs, None, None][:5]
    bits, block, width = (node.attributes[name].as_int() for name in ("bits", "block_size", "K"))
    if zeros is not None:
        raise RecipeError(f"{node.name}: Q/DQ supports symmetric weights only", hint="Leave out --zero-points.")
    assert x is not None
    assert packed is not None
    assert packed.const_value is not None
    assert scales is not None
    assert scales.const_value is not None
    stem = _stem(node)
    codes = unpack(packed.const_value.numpy(), bits)
    rows = codes.reshape(len(codes), -1)[:, :width].T.astype(np.int16) - 2 ** (bits - 1)  # [K, N]
    weight = _signed(graph, f"{stem}.weight", rows, bits)
    table = scales.const_value.numpy().T  # [blocks, N]
    scale = constant(graph, f"{stem}.weight_scale_rows", table if len(table) > 1 else table[0])
    how = {"axis": 0, "block_size": block} if len(table) > 1 else {"axis": 1}
    blocks = ir.node("DequantizeLinear", [weight, scale], how, name=f"{stem}/weight/DequantizeLinear")
    product = ir.node("MatMul", [x, blocks.outputs[0]], name=f"{stem}/MatMul")
    graph.insert_before(node, blocks)
    if bias is None:
        replace_node(graph, node, product)
        return
    graph.insert_before(node, product)
    _typed_like(product.outputs[0], node.outputs[0])
    replace_node(graph, node, ir.node("Add", [product.outputs[0], bias], name=f"{stem}/Add"))


def _embedding(graph: ir.Graph, node: ir.Node, _: _Shared) -> None:
    table, scale, ids = _given(node, 3)
    assert scale.const_value is not None
    stem = _stem(node)
    rows = constant(graph, f"{scale.name}.rows", scale.const_value.numpy()[:, 0])
    whole = ir.node("DequantizeLinear", [table, rows], {"axis": 0}, name=f"{stem}/table/DequantizeLinear")
    graph.insert_before(node, whole)
    replace_node(graph, node, ir.node("Gather", [whole.outputs[0], ids], {"axis": 0}, name=f"{stem}/Gather"))


def _rounded(
    graph: ir.Graph, node: ir.Node, quantized: tuple[ir.Value, ir.Value, ir.Value], shared: _Shared
) -> ir.Value:
    """The value after its Q and DQ, which are created once per value and scale."""
    x, scale, zero_point = quantized
    key = (x, scale)
    if key not in shared:
        quantize = ir.node("QuantizeLinear", [x, scale, zero_point], name=f"{x.name}/QuantizeLinear")
        back = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], name=f"{x.name}/DequantizeLinear")
        graph.insert_before(node, [quantize, back])
        _typed_like(back.outputs[0], x)
        shared[key] = back.outputs[0]
    return shared[key]


def _signed(graph: ir.Graph, name: str, codes: npt.NDArray[np.int16], bits: int) -> ir.Value:
    """Signed codes [K, N] as an INT8 constant, or INT4 with two per byte, the first in the low half."""
    if bits == 8:
        return constant(graph, name, codes.astype(np.int8))
    flat = (codes & 15).astype(np.uint8).reshape(-1)
    flat = np.pad(flat, (0, flat.size % 2))
    shape = ir.Shape(codes.shape)
    tensor = ir.PackedTensor(flat[0::2] | flat[1::2] << np.uint8(4), ir.DataType.INT4, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.INT4), const_value=tensor)
    graph.register_initializer(value)
    return value


def _given(node: ir.Node, count: int) -> list[ir.Value]:
    given = [value for value in node.inputs[:count] if value is not None]
    assert len(given) == count, f"{node.name} lacks an input"
    return given


def _stem(node: ir.Node) -> str:
    return (node.name or node.op_type).rpartition("/")[0] or node.op_type


def _typed_like(value: ir.Value, other: ir.Value) -> None:
    value.type, value.shape = other.type, other.shape


_TEMPLATES: dict[str, Callable[[ir.Graph, ir.Node, _Shared], None]] = {
    "QuantizedLinear": _linear,
    "Rounded": _round,
    "BlockLinear": _block_linear,
    "QuantizedEmbedding": _embedding,
}
