"""Lowers to standard ONNX ops only, with explicit Q/DQ and explicit types."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from edgecompress.errors import RecipeError
from edgecompress.graph.model import write_model
from edgecompress.graph.ops import DOMAIN, has_cached_attention
from edgecompress.graph.packing import pack_linears
from edgecompress.lower.qdq import lower_to_qdq
from edgecompress.lower.standard_attention import lower_to_standard_attention
from edgecompress.lower.standard_cached_attention import OPSET as OPSET_OF_CACHES
from edgecompress.lower.standard_cached_attention import lower_to_standard_cached_attention
from edgecompress.lower.standard_pieces import lower_to_standard_pieces
from edgecompress.lower.typed import computes_in_half, strongly_typed
from edgecompress.types.graph import Graph

CAPTURED_OPSET = 21
"""Opset of the portable graphs: with later ones, PyTorch's exporter writes ops that ONNX Runtime rejects."""

OPSET = 23
"""Opset of lowered graphs: the first with Attention. Captured ops keep their meaning in it and take more types."""

_COMPUTED_IN_HALF = ("Gated", "Rotary")  # among our own ops


def lower_model(model: ir.Model, wide: Collection[str] = (), *, capacity_tokens: int = 0) -> ir.Model:
    """Rewrite ``model``, of CAPTURED_OPSET, in place to standard ops of float16 and float32; return it.

    ``wide`` names values beyond float16's range. ``capacity_tokens`` is the capacity of the KV cache per row; the cache
    becomes float16 [B, Hk, capacity_tokens, D]. Raises RecipeError for an op that has no standard form.
    """
    model = to_standard_ops(model, capacity_tokens=capacity_tokens)
    strongly_typed(model, wide)
    return model


def to_standard_ops(model: ir.Model, *, capacity_tokens: int = 0) -> ir.Model:
    """The first half of :func:`lower_model`: float32 except for quantized values, and every value is typed."""
    cached = has_cached_attention(model)
    model.opset_imports[""] = OPSET_OF_CACHES if cached else OPSET
    DeduplicateInitializersPass()(model)
    if cached:
        assert capacity_tokens > 0, "an engine needs a fixed cache capacity"
        pack_linears(model)  # for float weights; quantized ones were packed before
        lower_to_standard_cached_attention(model, capacity_tokens)
    lower_to_standard_attention(model)
    lower_to_standard_pieces(model, capacity_tokens)
    lower_to_qdq(model)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    TopologicalSortPass()(model)
    RemoveUnusedOpsetsPass()(model)
    left = sorted({node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN})
    if left:
        raise RecipeError(
            f"this version cannot lower {', '.join(left)} of this student to standard ops",
            hint="Export it for a CPU target.",
        )
    model = ShapeInferencePass()(model).model
    untyped = [value.name for node in model.graph for value in node.outputs if value.name and value.dtype is None]
    if untyped:
        raise RecipeError(
            f"the types of {len(untyped)} values of this student cannot be inferred, for example {untyped[0]}",
            hint="Export it for a CPU target.",
        )
    return model


def computed_in_half(model: ir.Model) -> list[str]:
    """Names of the float32 values of a portable graph that would become float16, to check them against its range."""
    nodes = (node for node in model.graph if computes_in_half(node) or node.op_type in _COMPUTED_IN_HALF)
    return [value.name or "" for node in nodes for value in node.outputs if value.dtype == ir.DataType.FLOAT]


def lower(graph: Graph, out_dir: Path, wide: Collection[str] = (), *, capacity_tokens: int = 0) -> Graph:
    """Write ``typed-<precision>.onnx``, which contains only standard ops and types every value."""
    path = out_dir / f"typed-{graph.precision}.onnx"
    write_model(lower_model(ir.load(graph.path), wide, capacity_tokens=capacity_tokens), path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
