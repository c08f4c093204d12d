"""Lowers ``edgecompress::Attention`` to ONNX Runtime's ``com.microsoft::MultiHeadAttention``.

This matches no patterns. Beyond the node itself, it only checks whether the head split before it and the head merge
after it can be dropped, because MultiHeadAttention does both.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import constant, replace_heads

_MASKED = float(np.finfo(np.float32).min)


def lower_attention(model: ir.Model) -> int:
    """Rewrite every Attention node of ``model`` in place; return how many there were."""
    graph = model.graph
    shared: dict[tuple[str, object], ir.Value] = {}
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "Attention"]
    for node in nodes:
        _lower_one(graph, node, shared)
    if nodes:
        model.opset_imports[MICROSOFT] = 1
    return len(nodes)


def _lower_one(graph: ir.Graph, node: ir.Node, shared: dict[tuple[str, object], ir.Value]) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    heads, head_size = int(attributes["num_heads"]), int(attributes["head_size"])
    query, key, value = node.inputs[0], node.inputs[1], node.inputs[2]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    for name, tensor in (("key", key), ("value", value)):
        if tensor is None or tensor.shape is None or tensor.shape[1] != heads:
            raise RecipeError(
                f"{node.name}: {name} and query have different numbers of heads",
                hint="This version does not support grouped-query attention in encoders.",
            )
    assert query is not None
    merged = [merge_heads(graph, node, t, heads * head_size) for t in (query, key, value) if t is not None]
    padding = _padding(graph, node, mask, shared) if mask is not None else None
    bias = _window_bias(graph, node, merged[0], int(attributes["window"]), shared) if "window" in attributes else None
    inputs = [*merged, None, padding, bias]
    while inputs[-1] is None:
        inputs.pop()
    result = ir.node(
        "MultiHeadAttention",
        inputs,
        attributes={
            "num_heads": heads,
            "scale": float(attributes["scale"]),
            # With ONNX Runtime's default of -10000, padding leaks through where scores are large.
            "mask_filter_value": _MASKED,
        },
        domain=MICROSOFT,
        name=(node.name or "").replace("/Attention", "/MultiHeadAttention"),
    )
    graph.insert_before(node, result)
    out, old = result.outputs[0], node.outputs[0]
    out.type = old.type
    old_shape = old.shape
    out.shape = ir.Shape([old_shape[0], old_shape[1], heads * head_size]) if old_shape is not None else None
    replace_heads(graph, node, out, heads, head_size)


def merge_heads(graph: ir.Graph, node: ir.Node, tensor: ir.Value, hidden: int) -> ir.Value:
    """[B, H, T, D] -> [B, T, H * D]; reuses the unsplit value if it was split just before."""
    transpose = tensor.producer()
    if transpose is not None and transpose.op_type == "Transpose":
        perm = transpose.attributes["perm"].as_ints()
        split = transpose.inputs[0]
        reshape = split.producer() if split is not None else None
        if list(perm) == [0, 2, 1, 3] and reshape is not None and reshape.op_type == "Reshape":
            source = reshape.inputs[0]
            if source is not None and source.shape is not None and len(source.shape) == 3 and source.shape[2] == hidden:
                return source
    back = ir.node("Transpose", [tensor], attributes={"perm": [0, 2, 1, 3]}, name=f"{node.name}/to_rows_{tensor.name}")
    shape = constant(graph, f"{node.name}/rows_of_{hidden}", np.array([0, 0, hidden], dtype=np.int64))
    merge = ir.node("Reshape", [back.outputs[0], shape], name=f"{node.name}/merge_heads_{tensor.name}")
    graph.insert_before(node, [back, merge])
    rows = merge.outputs[0]
    rows.type = tensor.type
    return rows


def _padding(graph: ir.Graph, node: ir.Node, mask: ir.Value, shared: dict[tuple[str, object], ir.Value]) -> ir.Value:
    key = ("padding", mask)
    if key not in shared:
        source = mask.producer()
        # The model casts the int64 mask to bool, but the op takes int32: cast once, from the source.
        origin = source.inputs[0] if source is not None and source.op_type == "Cast" else mask
        cast = ir.node("Cast", [origin], attributes={"to": int(ir.DataType.INT32)}, name="graph/key_padding_mask")
        graph.insert_before(node, cast)
        shared[key] = cast.outputs[0]
    return shared[key]


def _window_bias(
    graph: ir.Graph, node: ir.Node, rows: ir.Value, window: int, shared: dict[tuple[str, object], ir.Value]
) -> ir.Value:
    """Additive bias float32 [1, 1, T, T]: 0 where |i - j| <= window, the lowest float elsewhere. One per model."""
    key = ("bias", window)
    if key in shared:
        return shared[key]
    inside = inside_window(graph, node, rows, window, shared)

    def scalar(name: str, number: float) -> ir.Value:
        return constant(graph, f"graph/window_{name}", np.array(number, dtype=np.float32))

    inputs = [inside, scalar("attend", 0.0), scalar("masked", _MASKED)]
    bias = ir.node("Where", inputs, name=f"graph/window_{window}/Where")
    lead = constant(graph, "graph/window_lead", np.array([0, 1], dtype=np.int64))
    unsqueeze = ir.node("Unsqueeze", [bias.outputs[0], lead], name=f"graph/window_{window}/Unsqueeze_lead")
    graph.insert_before(node, [bias, unsqueeze])
    shared[key] = unsqueeze.outputs[0]
    return shared[key]


def inside_window(
    graph: ir.Graph, node: ir.Node, rows: ir.Value, window: int, shared: dict[tuple[str, object], ir.Value]
) -> ir.Value:
    """bool [T, T], true where |i - j| <= window, with T of rows [B, T, H]. One per model, before ``node``."""
    key = ("window", window)
    if key in shared:
        return shared[key]

    def scalar(name: str, number: int) -> ir.Value:
        return constant(graph, f"graph/window_{name}", np.array(number, dtype=np.int64))

    def op(kind: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        made = ir.node(kind, inputs, attributes=attributes, name=f"graph/window_{window}/{kind}_{len(steps)}")  # type: ignore[arg-type]
        steps.append(made)
        return made.outputs[0]

    steps: list[ir.Node] = []
    axis = constant(graph, "graph/window_axis_0", np.array([0], dtype=np.int64))
    axis_1 = constant(graph, "graph/window_axis_1", np.array([1], dtype=np.int64))
    length = op("Squeeze", [op("Shape", [rows], start=1, end=2), axis])
    positions = op("Range", [scalar("zero", 0), length, scalar("one", 1)])
    distance = op("Abs", [op("Sub", [op("Unsqueeze", [positions, axis_1]), op("Unsqueeze", [positions, axis])])])
    shared[key] = op("LessOrEqual", [distance, scalar(f"reach_{window}", window)])
    graph.insert_before(node, steps)
    return shared[key]
