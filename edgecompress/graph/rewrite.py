"""Helpers of graph passes: shared constants, and replacing nodes while values keep their names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.types.arrays import Array


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """The initializer of that name, created from the array on first use."""
    if name in graph.initializers:
        return graph.initializers[name]
    array = np.asarray(array, order="C")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Replace ``old`` by ``new``, whose first output takes over name, type and shape."""
    graph.insert_before(old, new)
    before, after = old.outputs[0], new.outputs[0]
    name = before.name
    after.type, after.shape = before.type, before.shape
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name


def replace_heads(graph: ir.Graph, node: ir.Node, out: ir.Value, heads: int, size: int) -> None:
    """Pass ``out`` [B, T, H * D] to consumers that merge heads anyway, and [B, T, H, D] to the others."""
    old = node.outputs[0]
    for consumer in [c for c, _ in old.uses()]:
        merged = consumer.outputs[0]
        if consumer.op_type == "Reshape" and merged.shape is not None and list(merged.shape)[2:] == [heads * size]:
            name = merged.name
            ir.convenience.replace_all_uses_with(merged, out, replace_graph_outputs=True)
            graph.remove(consumer, safe=True)
            out.name = name  # calibration finds values by name
    if old.uses() or old.is_graph_output():
        shape = constant(graph, f"graph/heads_{heads}x{size}", np.array([0, 0, heads, size], dtype=np.int64))
        split = ir.node("Reshape", [out, shape], name=f"{node.name}/split_heads")
        graph.insert_before(node, split)
        split.outputs[0].type, split.outputs[0].shape = old.type, old.shape
        name = old.name
        ir.convenience.replace_all_uses_with(old, split.outputs[0], replace_graph_outputs=True)
        split.outputs[0].name = name
    graph.remove(node, safe=True)
