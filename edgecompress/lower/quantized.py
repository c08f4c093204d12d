"""``edgecompress`` quantized ops to ONNX Runtime's CPU kernels.

- QuantizedLinear: one quantization of x for all layers that read it, then MatMulIntegerToFloat, which multiplies in
  int8, scales a column and adds the bias in one pass over the output;
- BlockLinear: MatMulNBits;
- QuantizedEmbedding: two Gathers, a Cast and a product.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

DOMAIN = "edgecompress"
MICROSOFT = "com.microsoft"


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
    _put(graph, node, ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=node.name))


def _block_linear(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    x, weight, scales, bias = node.inputs[:4]
    attributes = {name: node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")}
    # accuracy_level 4: x is quantized to int8 a block, and the product is made in int8.
    inputs = [x, weight, scales, None, None, bias]
    lowered = ir.node(
        "MatMulNBits", inputs, attributes=attributes | {"accuracy_level": 4}, domain=MICROSOFT, name=node.name
    )
    _put(graph, node, lowered)


def _embedding(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, ...], list[ir.Value]]) -> None:
    table, scale, ids = node.inputs
    rows = ir.node("Gather", [table, ids], attributes={"axis": 0}, name=f"{node.name}/rows")
    row_scales = ir.node("Gather", [scale, ids], attributes={"axis": 0}, name=f"{node.name}/scales")
    cast = ir.node("Cast", [rows.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/Cast")
    graph.insert_before(node, [rows, row_scales, cast])
    _put(graph, node, ir.node("Mul", [cast.outputs[0], row_scales.outputs[0]], name=node.name))


def _put(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    graph.insert_before(old, new)
    before, after = old.outputs[0], new.outputs[0]
    name = before.name
    after.type, after.shape = before.type, before.shape
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name


_LOWER: dict[str, Callable[[ir.Graph, ir.Node, dict[tuple[str, ...], list[ir.Value]]], None]] = {
    "QuantizedLinear": _linear,
    "BlockLinear": _block_linear,
    "QuantizedEmbedding": _embedding,
}
