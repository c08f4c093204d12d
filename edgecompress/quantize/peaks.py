"""Finds values that float16 may not represent: their largest magnitudes on the calibration text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgecompress.quantize.parts import FloatGraph, calibration_session
from edgecompress.types.arrays import Feed

ROOM = 4.0  # safety factor: other texts than the calibration's reach further
_LARGEST = float(np.finfo(np.float16).max)


def too_large_for_half(runnable: ir.Model, names: Iterable[str], batches: Iterable[Feed]) -> tuple[str, ...]:
    """The named float32 values that come within a factor of ROOM of float16's largest number, sorted by name.

    ``runnable`` must run on ONNX Runtime's CPU and is not changed. The maxima are computed inside the graph, so no
    activation is copied out.
    """
    floats = FloatGraph(runnable.clone())  # keep a reference: it owns the weights' temporary file
    model = floats.model
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    watched = [name for name in dict.fromkeys(names) if name in values]
    graph.outputs.clear()
    for name in watched:
        size = ir.node("Abs", [values[name]], name=f"{name}/Abs")
        peak = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0}, name=f"{name}/ReduceMax")
        graph.extend([size, peak])
        peak.outputs[0].name = f"{name}.peak"
        peak.outputs[0].type, peak.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        graph.outputs.append(peak.outputs[0])
    if not watched:
        return ()
    session = calibration_session(model)
    wanted = {value.name for value in session.get_inputs()}
    peaks = np.zeros(len(watched))
    for batch in batches:
        found = session.run(None, {name: array for name, array in batch.items() if name in wanted})
        peaks = np.maximum(peaks, np.array(found, dtype=np.float64))
    return tuple(sorted(name for name, peak in zip(watched, peaks, strict=True) if not peak * ROOM <= _LARGEST))
