"""Lowers a decoder's other ops to standard ops (opset 23).

``edgecompress::Rotary`` becomes RotaryEmbedding, ``RMSNorm`` RMSNormalization, ``Gated`` an activation and a product.
"""

from __future__ import annotations

import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import replace_node


def lower_to_standard_pieces(model: ir.Model, capacity_tokens: int = 0) -> int:
    """Rewrite every Rotary, RMSNorm and Gated of ``model`` in place; return how many. Needs opset 23 or later.

    With ``capacity_tokens``, rotary tables are cut to that many positions.
    """
    if capacity_tokens:
        _cut_tables(model.graph, capacity_tokens)
    nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type in _LOWERINGS]
    for node in nodes:
        _LOWERINGS[node.op_type](model.graph, node)
    return len(nodes)


def _cut_tables(graph: ir.Graph, rows: int) -> None:
    readers = [node for node in graph if node.domain == DOMAIN and node.op_type == "Rotary"]
    for table in {value for node in readers for value in node.inputs[2:4] if value is not None}:
        constant = table.const_value
        if constant is not None and int(constant.shape[0]) > rows:  # type: ignore[arg-type]
            cut = constant.numpy()[:rows].copy()
            table.const_value = ir.tensor(cut, name=table.name)
            table.shape = ir.Shape(cut.shape)


def _rotary(graph: ir.Graph, node: ir.Node) -> None:
    """x [B, H, T, D] and position_ids [B, T] with tables [P, R / 2]; elements of a head beyond R pass through."""
    x, position_ids, cos, sin = node.inputs[:4]
    assert x is not None
    assert x.shape is not None
    attributes: dict[str, int] = {"interleaved": node.attributes["interleaved"].as_int()}
    width = node.attributes["rotary_dim"].as_int()
    if width != x.shape[3]:
        attributes["rotary_embedding_dim"] = width
    name = (node.name or "").replace("/Rotary", "/RotaryEmbedding")
    replace_node(graph, node, ir.node("RotaryEmbedding", [x, cos, sin, position_ids], attributes, name=name))


def _rms_norm(graph: ir.Graph, node: ir.Node) -> None:
    attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float(), "stash_type": 1}
    name = (node.name or "").replace("/RMSNorm", "/RMSNormalization")
    replace_node(graph, node, ir.node("RMSNormalization", list(node.inputs), attributes, name=name))


def _gated(graph: ir.Graph, node: ir.Node) -> None:
    gate, up = node.inputs
    assert gate is not None
    parent = (node.name or "graph/Gated").rpartition("/")[0]
    kind = node.attributes["activation"].as_string()

    def step(op: str, inputs: list[ir.Value], attributes: dict[str, str] | None = None) -> ir.Value:
        made = ir.node(op, inputs, attributes or {}, name=f"{parent}/{op}")
        graph.insert_before(node, made)
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        return made.outputs[0]

    if kind == "silu":
        sigmoid = step("Sigmoid", [gate])
        active = ir.node("Mul", [gate, sigmoid], name=f"{parent}/silu")
        graph.insert_before(node, active)
        value = active.outputs[0]
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    elif kind == "relu":
        value = step("Relu", [gate])
    else:
        value = step("Gelu", [gate], {"approximate": "tanh" if kind == "gelu_tanh" else "none"})
    replace_node(graph, node, ir.node("Mul", [value, up], name=f"{parent}/Mul"))


_LOWERINGS = {"Rotary": _rotary, "RMSNorm": _rms_norm, "Gated": _gated}
