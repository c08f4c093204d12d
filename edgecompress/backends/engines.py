"""Code shared by the two backends that build engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from edgecompress.backends.float16 import Float16
from edgecompress.lower import standard
from edgecompress.types.bundle import ShapeRange
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits
from edgecompress.types.recipe import EngineRecipe

LIMITS = WeightLimits(
    signed_activations=True,
    positive_scales=True,
    half_scales=True,
    residuals=True,
    least_blocks=2,
    whole_columns=True,
    table_rows=True,
)


def lowering(job: Job, float16: Float16) -> Callable[[str, Graph, Path], Graph]:
    """Return a function that writes ``typed-<precision>.onnx``, from which an engine is built."""

    def lower(name: str, graph: Graph, folder: Path) -> Graph:
        capacity = job.recipe.engine.context_tokens or 0
        return standard.lower(graph, folder, float16.wide(name), capacity_tokens=capacity)

    return lower


def profile_of(graph: Graph, recipe: EngineRecipe) -> dict[str, ShapeRange]:
    """Return the resolved recipe's shape range of each graph input, matched by capture's axis names."""
    assert recipe.batch is not None
    ranges: Mapping[str, tuple[int, int, int]] = {"batch": recipe.batch, **_lengths(recipe)}
    profile = {}
    for value in ir.load(graph.path).graph.inputs:
        assert value.shape is not None
        axes = [(size,) * 3 if isinstance(size, int) else ranges[str(size)] for size in value.shape]
        smallest, usual, largest = zip(*axes, strict=True)
        profile[value.name or ""] = ShapeRange(smallest=smallest, usual=usual, largest=largest)
    return profile


def _lengths(recipe: EngineRecipe) -> Mapping[str, tuple[int, int, int]]:
    ranges: dict[str, tuple[int, int, int]] = {}
    if recipe.length_tokens is not None:
        ranges["sequence"] = ranges["tokens"] = recipe.length_tokens
        ranges["wanted"] = (1, 1, recipe.length_tokens[2])
    if recipe.context_tokens is not None:
        ranges["total_tokens"] = (1, max(1, recipe.context_tokens // 2), recipe.context_tokens)
    return ranges
