"""Lowers ``edgecompress::Attention`` to the standard ONNX ``Attention`` (opset 23).

The mask is bool [B, 1, T, T], true where a token attends. All T rows of a text's mask are equal, but they are written
out, because ONNX Runtime's CPU kernel, which verifies the graph against PyTorch, does not broadcast that axis.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant, replace_heads
from edgecompress.lower.attention import inside_window, merge_heads


def lower_to_standard_attention(model: ir.Model) -> int:
    """Rewrite every Attention node of ``model`` in place; return how many there were. Needs opset 23 or later."""
    graph = model.graph
    shared: dict[tuple[str, object], ir.Value] = {}
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "Attention"]
    for node in nodes:
        _lower_one(graph, node, shared)
    return len(nodes)


def _lower_one(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, object], ir.Value]) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    heads, size = int(attributes["num_heads"]), int(attributes["head_size"])
    query, key, value = node.inputs[:3]
    assert query is not None
    assert key is not None
    assert value is not None
    assert key.shape is not None
    kv_heads = int(key.shape[1])  # type: ignore[arg-type]
    rows = merge_heads(graph, node, query, heads * size)
    inputs = [rows, *(merge_heads(graph, node, tensor, kv_heads * size) for tensor in (key, value))]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    window = attributes.get("window")
    if mask is not None or window is not None:
        inputs.append(_mask(graph, node, rows, mask, int(window) if window is not None else None, shared))
    made = ir.node(
        "Attention",
        inputs,
        attributes={"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": float(attributes["scale"])},
        name=node.name,
    )
    graph.insert_before(node, made)
    out, old = made.outputs[0], node.outputs[0]
    out.type = old.type
    out.shape = ir.Shape([old.shape[0], old.shape[1], heads * size]) if old.shape is not None else None
    replace_heads(graph, node, out, heads, size)


def _mask(
    graph: ir.Graph,
    node: ir.Node,
    rows: ir.Value,
    mask: ir.Value | None,
    window: int | None,
    shared: dict[tuple[str, object], ir.Value],
) -> ir.Value:
    """bool [B, 1, T, T], or [1, 1, T, T] if there is only a window; one per model."""
    key = (f"mask within {window}", mask)
    if key in shared:
        return shared[key]
    steps: list[ir.Node] = []
    parts: list[ir.Value] = []

    def op(kind: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        steps.append(ir.node(kind, inputs, attributes, name=f"graph/attention_mask_{len(shared)}/{kind}_{len(steps)}"))
        return steps[-1].outputs[0]

    def axes(*numbers: int) -> ir.Value:
        name = "graph/attention_mask_" + "_".join(map(str, numbers))
        return constant(graph, name, np.array(numbers, dtype=np.int64))

    if window is not None:
        inside = inside_window(graph, node, rows, window, shared)
        parts.append(op("Unsqueeze", [inside, axes(0, 1)]))
    if mask is not None:
        keep = mask if mask.dtype == ir.DataType.BOOL else op("Cast", [mask], to=int(ir.DataType.BOOL))
        parts.append(op("Unsqueeze", [keep, axes(1, 2)]))
    if len(parts) == 2:
        shared[key] = op("And", parts)
    elif window is not None:
        shared[key] = parts[0]
    else:
        tokens = op("Shape", [rows], start=1, end=2)
        shared[key] = op("Expand", [parts[0], op("Concat", [axes(1), axes(1), tokens, axes(1)], axis=0)])
    graph.insert_before(node, steps)
    return shared[key]
