"""Converts float32 graphs to float16 with ONNX Runtime's converter."""

from __future__ import annotations

import onnx_ir as ir
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

# Ops without a float16 CPU kernel, or whose values can exceed float16's range.
_KEEP_FLOAT32 = ["MultiHeadAttention", "If", "LayerNormalization", "ReduceL2", "ReduceSum"]


def to_float16(model: ir.Model) -> ir.Model:
    """Return a copy whose weights and arithmetic are float16; inputs and outputs keep their types."""
    proto = convert_float_to_float16(
        ir.to_proto(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEEP_FLOAT32],
    )
    half: ir.Model = ir.from_proto(proto)
    return half
