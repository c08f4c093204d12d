"""Writes ONNX models."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

EXTERNAL_DATA_BYTES = 200_000_000  # larger weights get a data file, which is mapped; a protobuf ends at 2 GiB


def write_model(model: ir.Model, path: Path) -> None:
    """Save a complete model: weights in one data file beside it if they are large, else inside it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        # Load weights from other graphs' data files; otherwise the model would refer to them by path.
        ir.save(ir.external_data.load_to_model(model), path)
