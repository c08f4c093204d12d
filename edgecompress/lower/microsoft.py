"""Lowers to ONNX Runtime's own fused ops, in float32 unless the precision is fp16."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from edgecompress.graph.model import write_model
from edgecompress.graph.ops import has_cached_attention
from edgecompress.graph.packing import pack_linears
from edgecompress.lower.attention import lower_attention
from edgecompress.lower.cached_attention import lower_cached_attention
from edgecompress.lower.experts import lower_experts
from edgecompress.lower.gated import lower_gated
from edgecompress.lower.half import to_float16
from edgecompress.lower.padding import skip_mask_when_unpadded
from edgecompress.lower.quantized import lower_quantized
from edgecompress.lower.rotary import lower_rms_norm, lower_rotary
from edgecompress.types.graph import Graph
from edgecompress.types.precision import FP16


def lower_model(model: ir.Model) -> ir.Model:
    """Rewrite ``model`` in place to standard and com.microsoft ops, arranged for a CPU; return it."""
    to_ops(model)
    skip_mask_when_unpadded(model)
    TopologicalSortPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return model


def to_ops(model: ir.Model) -> ir.Model:
    """Like :func:`lower_model`, but without ``If`` branches, for providers that do not gain from them."""
    # The exporter writes shared weights (ALBERT's layers) once per use.
    DeduplicateInitializersPass()(model)
    if has_cached_attention(model):
        pack_linears(model)  # for float weights; quantized ones were packed before
    lower_attention(model)
    lower_cached_attention(model)
    RemoveUnusedNodesPass()(model)
    lower_rotary(model)
    lower_rms_norm(model)
    lower_gated(model)
    lower_experts(model)
    lower_quantized(model)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    TopologicalSortPass()(model)
    RemoveUnusedOpsetsPass()(model)
    return model


def lower(graph: Graph, out_dir: Path) -> Graph:
    """Write ``lowered-<precision>.onnx``, which contains only standard and com.microsoft ops."""
    path = out_dir / f"lowered-{graph.precision}.onnx"
    model = lower_model(ir.load(graph.path))
    write_model(to_float16(model) if graph.precision == FP16 else model, path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
