"""float32 to float16 for targets that compute in it, by ONNX Runtime's own converter."""

from __future__ import annotations

import onnx_ir as ir
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

# No float16 kernel on the CPU provider, or one that loses what float16 cannot hold.
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
