"""Maps precisions to schemes. A new precision needs a row here, one in types/precision.py, and a scheme."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.quantize.blocks import quantize_to_int4_blocks, quantize_to_int8_blocks
from edgecompress.quantize.float8 import quantize_to_float8
from edgecompress.quantize.int8 import quantize_to_dynamic_int8, quantize_to_static_int8
from edgecompress.quantize.mixed import quantize_to_mixed_blocks
from edgecompress.quantize.scheme import Scheme
from edgecompress.types.precision import (
    FP8,
    FP16,
    FP32,
    INT4_WEIGHTS,
    INT8_DYNAMIC,
    INT8_STATIC,
    INT8_WEIGHTS,
    MIXED_WEIGHTS,
)

SCHEMES: Mapping[str, Scheme | None] = {
    FP32: None,
    FP16: None,
    INT8_DYNAMIC: quantize_to_dynamic_int8,
    INT8_STATIC: quantize_to_static_int8,
    INT8_WEIGHTS: quantize_to_int8_blocks,
    INT4_WEIGHTS: quantize_to_int4_blocks,
    MIXED_WEIGHTS: quantize_to_mixed_blocks,
    FP8: quantize_to_float8,
}
"""None: the graph stays as captured; the lowering converts it to float16."""
