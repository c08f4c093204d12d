"""Lowers ``edgecompress`` quantized ops to ONNX Runtime's CPU kernels.

- QuantizedLinear: x is quantized once for all layers that read it, then MatMulIntegerToFloat multiplies in int8,
  scales per column and adds the bias in one pass over the output;
- BlockLinear: MatMulNBits;
- BlockEmbedding: GatherBlockQuantized on the same layout, so that a tied head can read the same tensor;
- QuantizedEmbedding: two Gathers, a Cast and a product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgecompress.graph.blocks import unpack
from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import constant, replace_node


def lower_quantized(model: ir.Model) -> int:
    """Rewrite every quantized op of ``model`` in place; return how many there were."""
    shared: dict[tuple[str, ...], list[ir.Value]] = {}
    nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type in _LOWER]
    for node in nodes:
        _LOWER[node.op_type](model.graph, node, shared)
    if nodes:
        model.opset_imports[MICROSOFT] = 1
    return len(nodes)


def _linear(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    x, weight, scale, bias = node.inputs[:4]
    assert x is not None
    if node.attributes["static"].as_int():
        x_scale, zero_point = node.inputs[4], node.inputs[5]
        assert x_scale is not None
        assert zero_point is not None
        key = (x.name or "", x_scale.name or "")
        if key not in shared:
            quantize = ir.node("QuantizeLinear", [x, x_scale, zero_point], name=f"{x.name}/QuantizeLinear")
            graph.insert_before(node, quantize)
            shared[key] = [quantize.outputs[0], x_scale, zero_point]
    else:
        key = (x.name or "", "")
        if key not in shared:
            quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{x.name}/DynamicQuantizeLinear")
            graph.insert_before(node, quantize)
            shared[key] = list(quantize.outputs)
    quantized, x_scale, zero_point = shared[key]
    inputs = [quantized, weight, x_scale, scale, zero_point, None, bias]
    replace_node(graph, node, ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=node.name))


def _block_linear(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    x, weight, scales, zero_points, bias = [*node.inputs, None, None][:5]
    names = ("K", "N", "bits", "block_size", "accuracy_level")
    attributes = {name: node.attributes[name].as_int() for name in names}
    inputs = [x, weight, scales, zero_points, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    replace_node(graph, node, ir.node("MatMulNBits", inputs, attributes=attributes, domain=MICROSOFT, name=node.name))


def _block_embedding(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    """GatherBlockQuantized has a separate axis for blocks: [V, blocks, block], with one scale in the last axis."""
    table, ids, scales, zero_points = [*node.inputs, None][:4]
    assert table is not None
    assert ids is not None
    assert scales is not None
    bits, block, width = (node.attributes[name].as_int() for name in ("bits", "block_size", "H"))
    inputs = [table, ids, _column(graph, scales)]
    if zero_points is not None:
        inputs.append(_unpacked(graph, zero_points, bits, width // block))
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
    gather = ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=MICROSOFT, name=f"{node.name}/rows")
    rank = len(ids.shape) if ids.shape is not None else 2
    shape = constant(graph, f"{node.name}/shape", np.array([0] * rank + [width], dtype=np.int64))
    graph.insert_before(node, gather)
    replace_node(graph, node, ir.node("Reshape", [gather.outputs[0], shape], name=node.name))


def _column(graph: ir.Graph, scales: ir.Value) -> ir.Value:
    """[V, blocks] -> [V, blocks, 1]; a copy, because MatMulNBits takes two axes. It is much smaller than the table."""
    assert scales.const_value is not None
    return constant(graph, f"{scales.name}.column", scales.const_value.numpy()[:, :, None])


def _unpacked(graph: ir.Graph, zero_points: ir.Value, bits: int, blocks: int) -> ir.Value:
    """[V, ceil(blocks * bits / 8)] -> [V, blocks, 1], with one zero point per byte."""
    assert zero_points.const_value is not None
    zeros = unpack(zero_points.const_value.numpy(), bits)[:, :blocks]
    return constant(graph, f"{zero_points.name}.column", zeros[:, :, None])


def _embedding(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    table, scale, ids = node.inputs
    rows = ir.node("Gather", [table, ids], attributes={"axis": 0}, name=f"{node.name}/rows")
    row_scales = ir.node("Gather", [scale, ids], attributes={"axis": 0}, name=f"{node.name}/scales")
    cast = ir.node("Cast", [rows.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/Cast")
    graph.insert_before(node, [rows, row_scales, cast])
    replace_node(graph, node, ir.node("Mul", [cast.outputs[0], row_scales.outputs[0]], name=node.name))


_LOWER: dict[str, Callable[[ir.Graph, ir.Node, dict[tuple[str, ...], list[ir.Value]]], None]] = {
    "QuantizedLinear": _linear,
    "BlockLinear": _block_linear,
    "BlockEmbedding": _block_embedding,
    "QuantizedEmbedding": _embedding,
}
