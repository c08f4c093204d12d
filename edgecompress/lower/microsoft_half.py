"""Lowers to ONNX Runtime's own fused ops in float16, with all types explicit in the graph.

:mod:`edgecompress.lower.typed` chooses the types: attention, rotary embeddings and matrix products are float16, norms
and sums float32. A KV cache is float16 and appended to in place.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgecompress.errors import RecipeError
from edgecompress.graph.model import write_model
from edgecompress.lower import microsoft
from edgecompress.lower.typed import strongly_typed
from edgecompress.types.graph import Graph


def lower_model(model: ir.Model, wide: Collection[str] = ()) -> ir.Model:
    """Rewrite a portable float graph in place to standard and com.microsoft ops in float16; return it.

    ``wide`` names values beyond float16's range. Raises RecipeError if a value's type cannot be inferred.
    """
    model = ShapeInferencePass()(microsoft.to_ops(model)).model
    untyped = [value.name for node in model.graph for value in node.outputs if value.uses() and value.dtype is None]
    if untyped:
        raise RecipeError(
            f"the types of {len(untyped)} values of this student cannot be inferred, for example {untyped[0]}",
            hint="Export it for a CPU target.",
        )
    strongly_typed(model, wide)
    return model


def lower(graph: Graph, out_dir: Path, wide: Collection[str] = ()) -> Graph:
    """Write ``half-<precision>.onnx``."""
    path = out_dir / f"half-{graph.precision}.onnx"
    write_model(lower_model(ir.load(graph.path), wide), path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
