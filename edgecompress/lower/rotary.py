"""Lowers ``edgecompress::Rotary`` and ``edgecompress::RMSNorm`` to ONNX Runtime's own ops.

GroupQueryAttention applies a rotation that only feeds it (see ``lower/cached_attention.py``); other rotations become
``com.microsoft::RotaryEmbedding``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import replace_node


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Query and key before the rotation that both share."""

    query: ir.Value
    key: ir.Value
    position_ids: ir.Value
    cos: ir.Value  # [P, R / 2]
    sin: ir.Value
    interleaved: bool
    rotary_dim: int


def same_rotation(query: ir.Value, key: ir.Value) -> Rotation | None:
    """The rotation that computes both ``query`` and ``key``; None if they have different ones or none."""
    first, second = query.producer(), key.producer()
    if first is None or second is None or not (_is_rotary(first) and _is_rotary(second)):
        return None
    if any(a is not b for a, b in zip(first.inputs[1:], second.inputs[1:], strict=True)):
        return None
    kinds = [(n.attributes["interleaved"].as_int(), n.attributes["rotary_dim"].as_int()) for n in (first, second)]
    if kinds[0] != kinds[1]:
        return None
    (before_query, position_ids, cos, sin), before_key = first.inputs[:4], second.inputs[0]
    assert before_query is not None
    assert before_key is not None
    assert position_ids is not None
    assert cos is not None
    assert sin is not None
    return Rotation(
        query=before_query,
        key=before_key,
        position_ids=position_ids,
        cos=cos,
        sin=sin,
        interleaved=bool(kinds[0][0]),
        rotary_dim=kinds[0][1],
    )


def _is_rotary(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == "Rotary"


def gqa_can_rotate(rotation: Rotation, head_size: int) -> bool:
    """Whether GroupQueryAttention supports it: head sizes in multiples of 16 and tables in multiples of 8."""
    half = rotation.rotary_dim // 2
    return head_size % 16 == 0 and half % 8 == 0 and half <= head_size // 2


def lower_rotary(model: ir.Model) -> int:
    """Rewrite every Rotary that is still read, in place; return how many."""
    graph = model.graph
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "Rotary"]
    for node in nodes:
        x, position_ids, cos, sin = node.inputs[:4]
        assert x is not None
        assert x.shape is not None
        width, size = node.attributes["rotary_dim"].as_int(), x.shape[3]
        attributes: dict[str, int] = {"interleaved": node.attributes["interleaved"].as_int()}
        if width != size:
            attributes |= {"rotary_embedding_dim": width, "num_heads": int(x.shape[1])}  # type: ignore[arg-type]
        made = ir.node(
            "RotaryEmbedding",
            [x, position_ids, cos, sin],
            attributes=attributes,
            domain=MICROSOFT,
            name=(node.name or "").replace("/Rotary", "/RotaryEmbedding"),
        )
        replace_node(graph, node, made)
    if nodes:
        model.opset_imports[MICROSOFT] = 1
    return len(nodes)


def lower_rms_norm(model: ir.Model) -> int:
    """Rewrite every RMSNorm in place; return how many. ONNX Runtime keeps the op in the standard domain."""
    graph = model.graph
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "RMSNorm"]
    for node in nodes:
        made = ir.node(
            "SimplifiedLayerNormalization",
            list(node.inputs),
            attributes={"axis": -1, "epsilon": node.attributes["epsilon"].as_float(), "stash_type": 1},
            name=(node.name or "").replace("/RMSNorm", "/SimplifiedLayerNormalization"),
        )
        replace_node(graph, node, made)
    return len(nodes)
