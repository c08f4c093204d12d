"""Defines a scheme: a function that quantizes one loaded graph in place. schemes.py lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.graph.linears import Linear
from edgecompress.quantize.calibration import ActivationStatistics
from edgecompress.quantize.hessians import StreamedHessians
from edgecompress.quantize.parts import FloatGraph
from edgecompress.types.arrays import Batches
from edgecompress.types.limits import WeightLimits
from edgecompress.types.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A graph to quantize, and everything that a scheme may use."""

    model: ir.Model  # float32, changed in place
    linears: Sequence[Linear]  # the model's layers to quantize
    recipe: Recipe
    limits: WeightLimits
    statistics: Mapping[str, ActivationStatistics]  # name of a layer's input -> statistics; empty without calibration
    float_graph: Callable[[], FloatGraph]  # runs here; has its own weights, because the model's are freed
    batches: Batches  # calibration text for the float graph
    probes: Batches  # a few short texts, to run once per weight

    def hessians(self, floats: FloatGraph) -> StreamedHessians:
        """Hessians of the layers' inputs. ``floats`` must outlive them."""
        tensors = {linear.x.name or "": linear.width for linear in self.linears}
        return StreamedHessians(floats.model, tensors, self.batches)


Scheme = Callable[[Quantization], None]
