"""The lowering to the standard operator set: no other ops, explicit Q/DQ, strongly typed."""

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
"""Of portable graphs that are lowered here: PyTorch's exporter writes ops of later ones that ONNX Runtime fails on."""

OPSET = 23
"""Of lowered ones: the first that has Attention. Ops of a captured graph mean the same in it, and take more types."""

_COMPUTED_IN_HALF = ("Gated", "Rotary")  # of our own ops


def lower_model(model: ir.Model, wide: Collection[str] = (), *, capacity_tokens: int = 0) -> ir.Model:
    """Rewrite ``model``, of CAPTURED_OPSET, in place to standard ops of float16 and float32; return it.

    ``wide`` names values that float16 could not hold; ``capacity_tokens`` is what a KV cache holds of each row:
    it becomes float16 [B, Hk, capacity_tokens, D]. Raises RecipeError for an op that has no standard form.
    """
    model = to_standard_ops(model, capacity_tokens=capacity_tokens)
    strongly_typed(model, wide)
    return model


def to_standard_ops(model: ir.Model, *, capacity_tokens: int = 0) -> ir.Model:
    """The first half of :func:`lower_model`, still in float32 but for what is quantized; every value has its type."""
    cached = has_cached_attention(model)
    model.opset_imports[""] = OPSET_OF_CACHES if cached else OPSET
    DeduplicateInitializersPass()(model)
    if cached:
        assert capacity_tokens > 0, "an engine's cache is as long as it is built"
        pack_linears(model)  # finds what is still in float: packed before, if its weights were quantized
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
            f"{', '.join(left)} of this student cannot be lowered to standard ops by this version",
            hint="Export it for a CPU target.",
        )
    model = ShapeInferencePass()(model).model
    untyped = [value.name for node in model.graph for value in node.outputs if value.name and value.dtype is None]
    if untyped:
        raise RecipeError(
            f"the types of {len(untyped)} values of this student cannot be inferred, the first of them {untyped[0]}",
            hint="Export it for a CPU target.",
        )
    return model


def computed_in_half(model: ir.Model) -> list[str]:
    """Names of the float32 values of a portable float graph that would be float16, to be held against its range."""
    nodes = (node for node in model.graph if computes_in_half(node) or node.op_type in _COMPUTED_IN_HALF)
    return [value.name or "" for node in nodes for value in node.outputs if value.dtype == ir.DataType.FLOAT]


def lower(graph: Graph, out_dir: Path, wide: Collection[str] = (), *, capacity_tokens: int = 0) -> Graph:
    """Write ``typed-<precision>.onnx``, which holds standard ops only and says the type of every value."""
    path = out_dir / f"typed-{graph.precision}.onnx"
    write_model(lower_model(ir.load(graph.path), wide, capacity_tokens=capacity_tokens), path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
