"""Lowers ``edgecompress::CachedAttention`` to ONNX Runtime's ``com.microsoft::GroupQueryAttention``.

GroupQueryAttention takes rows of all heads, appends to the past in place if past and present share a buffer, and can
apply the rotary embedding. Shapes that it does not take (keys and values of different widths) are refused.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import constant, replace_heads
from edgecompress.lower.rotary import gqa_can_rotate, same_rotation

_UNSUPPORTED = "ONNX Runtime has no op for this attention, so this version does not support it."


def lower_cached_attention(model: ir.Model) -> int:
    """Rewrite every CachedAttention of ``model`` in place; return how many there were. Raises RecipeError."""
    graph = model.graph
    lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "CachedAttention"]
    for node in nodes:
        _lower_one(graph, node, lengths)
    if nodes:
        model.opset_imports[MICROSOFT] = 1
    return len(nodes)


def _lower_one(graph: ir.Graph, node: ir.Node, lengths: dict[ir.Value, tuple[ir.Value, ir.Value]]) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    heads, kv_heads = int(attributes["num_heads"]), int(attributes["kv_num_heads"])
    size = int(attributes["head_size"])
    query, key, value, past_key, past_value, mask = node.inputs[:6]
    sinks = node.inputs[6] if len(node.inputs) > 6 else None
    assert query is not None
    assert key is not None
    assert value is not None
    assert mask is not None
    _require_equal_widths(node, size, key, value)
    if heads % kv_heads:
        raise RecipeError(
            f"{node.name}: {heads} query heads are not a multiple of {kv_heads} key and value heads", hint=_UNSUPPORTED
        )
    if size % 8:
        raise RecipeError(
            f"{node.name}: its heads are {size} wide, but ONNX Runtime's GroupQueryAttention takes only multiples of 8",
            hint=_UNSUPPORTED,
        )
    rotation = same_rotation(query, key)
    if rotation is not None and gqa_can_rotate(rotation, size):
        query, key = rotation.query, rotation.key
    else:
        rotation = None
    rows = [
        to_rows(graph, node, tensor, count * size)
        for tensor, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    ]
    packed = _packed_source(rows)
    seqlens, total = _lengths(graph, node, mask, lengths)
    inputs: list[ir.Value | None] = [packed, None, None] if packed is not None else list(rows)
    inputs += [past_key, past_value, seqlens, total]
    inputs += [rotation.cos, rotation.sin, rotation.position_ids] if rotation is not None else [None, None, None]
    inputs += [None, sinks]  # no additive bias
    while inputs[-1] is None:
        inputs.pop()
    options: dict[str, ir.Attr | int | float] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": float(attributes["scale"]),
    }
    if rotation is not None:
        options |= {"do_rotary": 1, "rotary_interleaved": int(rotation.interleaved)}
    if "window" in attributes:
        options["local_window_size"] = int(attributes["window"]) + 1
    if "softcap" in attributes:
        options["softcap"] = float(attributes["softcap"])
    result = ir.node(
        "GroupQueryAttention",
        inputs,
        attributes=options,
        domain=MICROSOFT,
        num_outputs=3,
        name=(node.name or "").replace("/CachedAttention", "/GroupQueryAttention"),
    )
    graph.insert_before(node, result)
    old = node.outputs[0]
    out = result.outputs[0]
    out.type = old.type
    out.shape = ir.Shape([*old.shape[:2], heads * size]) if old.shape is not None else None
    for before, after in zip(node.outputs[1:], result.outputs[1:], strict=True):
        name = before.name
        after.type, after.shape = before.type, before.shape
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        before.name, after.name = None, name
    replace_heads(graph, node, out, heads, size)


def _require_equal_widths(node: ir.Node, size: int, key: ir.Value, value: ir.Value) -> None:
    for name, tensor in (("keys", key), ("values", value)):
        width = tensor.shape[3] if tensor.shape is not None else None
        if width != size:
            raise RecipeError(
                f"{node.name}: its {name} are {width} wide and its queries {size}, which ONNX Runtime's "
                "GroupQueryAttention cannot take",
                hint=_UNSUPPORTED,
            )


def to_rows(graph: ir.Graph, node: ir.Node, tensor: ir.Value, hidden: int) -> ir.Value:
    """[B, H, T, D] -> [B, T, H * D]; reuses the unsplit value if it was split just before."""
    transpose = tensor.producer()
    heads_last: ir.Value | None = None
    if _is(transpose, "Transpose") and list(transpose.attributes["perm"].as_ints()) == [0, 2, 1, 3]:
        heads_last = transpose.inputs[0]
        reshape = heads_last.producer() if heads_last is not None else None
        source = reshape.inputs[0] if _is(reshape, "Reshape") else None
        if source is not None and source.shape is not None and list(source.shape)[2:] == [hidden]:
            return source
    if heads_last is None:
        back = ir.node("Transpose", [tensor], attributes={"perm": [0, 2, 1, 3]}, name=f"{node.name}/{tensor.name}/rows")
        graph.insert_before(node, back)
        heads_last = back.outputs[0]
        heads_last.type = tensor.type
    shape = constant(graph, f"graph/rows_of_{hidden}", np.array([0, 0, hidden], dtype=np.int64))
    merge = ir.node("Reshape", [heads_last, shape], name=f"{node.name}/{tensor.name}/merge_heads")
    graph.insert_before(node, merge)
    merge.outputs[0].type = tensor.type
    if tensor.shape is not None:
        merge.outputs[0].shape = ir.Shape([tensor.shape[0], tensor.shape[2], hidden])
    return merge.outputs[0]


def _is(node: ir.Node | None, op: str) -> TypeGuard[ir.Node]:
    return node is not None and not node.domain and node.op_type == op


def _packed_source(rows: list[ir.Value]) -> ir.Value | None:
    """The value [B, T, N] that was cut into exactly these rows, in this order; None if there is none."""
    cuts = [_cut(row) for row in rows]
    first = cuts[0]
    if first is None or first[0].shape is None:
        return None
    source, at = first[0], 0
    for row, cut in zip(rows, cuts, strict=True):
        if cut is None or cut[0] is not source or cut[1] != at:
            return None
        at += _width(row)
    return source if at == _width(source) else None


def _cut(row: ir.Value) -> tuple[ir.Value, int] | None:
    """The value from which Split or Slice cut ``row`` along the last axis, and the offset of the cut."""
    node = row.producer()
    if _is(node, "Split"):
        axis = node.attributes.get("axis")
        source = node.inputs[0]
        if source is None or axis is None or axis.as_int() not in (-1, 2):
            return None
        return source, sum(_width(part) for part in node.outputs[: list(node.outputs).index(row)])
    if not _is(node, "Slice") or len(node.inputs) < 4:
        return None
    source = node.inputs[0]
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    numbers = [constant.numpy().tolist() for constant in constants if constant is not None]
    if source is None or len(numbers) != len(node.inputs) - 1:
        return None
    starts, _, axes, *steps = numbers
    if axes not in ([-1], [2]) or steps not in ([], [[1]]) or starts[0] < 0:
        return None
    return source, int(starts[0])


def _width(value: ir.Value) -> int:
    """Size of the last of three axes; -1 if it is unknown."""
    size = value.shape[2] if value.shape is not None and len(value.shape) == 3 else None
    return size if isinstance(size, int) else -1


def _lengths(
    graph: ir.Graph, node: ir.Node, mask: ir.Value, known: dict[ir.Value, tuple[ir.Value, ir.Value]]
) -> tuple[ir.Value, ir.Value]:
    """From attention_mask int64 [B, S]: the last position of each row, int32 [B], and S as an int32 scalar."""
    if mask in known:
        return known[mask]
    int32 = int(ir.DataType.INT32)
    axis = constant(graph, "graph/tokens_axis", np.array([1], dtype=np.int64))
    one = constant(graph, "graph/one_token", np.array(1, dtype=np.int32))
    zero = constant(graph, "graph/scalar_axis", np.array([0], dtype=np.int64))
    count = ir.node("ReduceSum", [mask, axis], attributes={"keepdims": 0}, name="graph/tokens_of_row")
    narrow = ir.node("Cast", [count.outputs[0]], attributes={"to": int32}, name="graph/tokens_of_row_int32")
    last = ir.node("Sub", [narrow.outputs[0], one], name="graph/last_position")
    width = ir.node("Shape", [mask], attributes={"start": 1, "end": 2}, name="graph/total_tokens")
    scalar = ir.node("Squeeze", [width.outputs[0], zero], name="graph/total_tokens_scalar")
    total = ir.node("Cast", [scalar.outputs[0]], attributes={"to": int32}, name="graph/total_tokens_int32")
    graph.insert_before(node, [count, narrow, last, width, scalar, total])
    known[mask] = (last.outputs[0], total.outputs[0])
    return known[mask]
