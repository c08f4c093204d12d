"""Names weights of our own ops for a report."""

from __future__ import annotations

import re

import onnx_ir as ir

from edgecompress.backends.contents import OwnWeight
from edgecompress.backends.onnxruntime_cpu.decoder_layers import weight_bits

_PANELS = ("EncoderLayer", "EncoderProjections")  # one node reads several weights, with their scales and biases
_TILES_PART = re.compile(r"^(model\.)*(?=model\.)|(\.weight)?_int\d\.tile(s|_scales|_zero_points)$")
_PANEL_PART = re.compile(r"(\.weight)?_int8\.panels$")


def own_weight(node: ir.Node, name: str, value: ir.Value) -> OwnWeight | None:
    """Describe a weight of an op that reads weights of several layers."""
    if node.op_type in _PANELS:
        return OwnWeight(label=_PANEL_PART.sub("", name), listed=value.dtype == ir.DataType.INT8)
    bits = weight_bits(node).get(value)
    return OwnWeight(label=_TILES_PART.sub("", name), bits=bits) if bits is not None else None
