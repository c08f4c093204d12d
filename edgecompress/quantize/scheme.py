"""What a scheme is: a function that quantizes one loaded graph in place. The table of them is in schemes.py."""

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
    """One graph that is to be quantized, and all that a scheme may look at."""

    model: ir.Model  # float32, changed in place
    linears: Sequence[Linear]  # those of the model that are to be quantized
    recipe: Recipe
    limits: WeightLimits
    statistics: Mapping[str, ActivationStatistics]  # of the layers' inputs by name; empty if nothing was calibrated
    float_graph: Callable[[], FloatGraph]  # lowered to run here, with weights of its own: the model's are let go of
    batches: Batches  # calibration text for the float graph
    probes: Batches  # a few short texts that it can be run over for every weight

    def hessians(self, floats: FloatGraph) -> StreamedHessians:
        """Those of the layers' inputs. ``floats`` must outlive them."""
        tensors = {linear.x.name or "": linear.width for linear in self.linears}
        return StreamedHessians(floats.model, tensors, self.batches)


Scheme = Callable[[Quantization], None]
