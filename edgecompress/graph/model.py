"""An ONNX model to a file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

EXTERNAL_DATA_BYTES = 200_000_000  # weights beyond lie in a file that is mapped; a protobuf is read, and ends at 2 GiB


def write_model(model: ir.Model, path: Path) -> None:
    """Save a model whole: with one data file of its own beside it when it is large, else with its weights inside."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        # Weights that still lie in another graph's data file would be left there, and named by a path.
        ir.save(ir.external_data.load_to_model(model), path)
