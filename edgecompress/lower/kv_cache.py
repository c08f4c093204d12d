"""Makes the KV cache int8: GroupQueryAttention stores its keys and values in int8, with one scale per channel.

The graph's interface changes in one place: past_key_values.{i}.key and .value, and present.{i}.key and .value, are int8
[B, Hk, C, D] instead of float32. The stored value is rint(x / scale), clamped to -128 … 127; the scales are
initializers, float32 [1, Hk, 1, D]. ONNX Runtime 1.32's CPU kernel first rounds the new keys and values, then reads all
of them from the cache, so a prefill sees the same values as later tokens. Windows, soft-caps and sinks work as with a
float cache, and past and present may share a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.model import write_model
from edgecompress.graph.rewrite import constant
from edgecompress.runtime.cache import PAST, PRESENT
from edgecompress.types.arrays import FloatArray
from edgecompress.types.graph import Graph

_PAST_KEY, _PAST_VALUE, _KEY_SCALE, _VALUE_SCALE = 3, 4, 12, 13  # indices of GroupQueryAttention's inputs
_FLOAT_CACHE = "Use --kv-cache fp32."


def lower_cache(graph: Graph, scales: Mapping[str, FloatArray], out_dir: Path) -> Graph:
    """Write ``<name>-int8-cache.onnx``, the graph with its cache in int8. See :func:`quantize_cache`."""
    model = ir.load(graph.path)
    quantize_cache(model, scales)
    path = out_dir / f"{graph.path.stem}-int8-cache.onnx"
    write_model(model, path)
    return Graph(path=path, stage=graph.stage, precision=graph.precision)


def quantize_cache(model: ir.Model, scales: Mapping[str, FloatArray]) -> None:
    """Rewrite every GroupQueryAttention of ``model`` in place.

    ``scales`` maps each cache input to float32 [Hk, D], all above 0. Raises RecipeError, before any change, if an op
    other than GroupQueryAttention reads or writes the cache.
    """
    graph = model.graph
    nodes = _require_attention(graph)
    for node in nodes:
        node.resize_inputs(_VALUE_SCALE + 1)
        for past, scale in ((_PAST_KEY, _KEY_SCALE), (_PAST_VALUE, _VALUE_SCALE)):
            value = node.inputs[past]
            assert value is not None
            numbers = scales[value.name or ""].astype(np.float32)
            node.replace_input_with(scale, constant(graph, f"{value.name}.scale", numbers[None, :, None, :]))
        node.attributes["k_quant_type"] = ir.AttrString("k_quant_type", "PER_CHANNEL")
        node.attributes["v_quant_type"] = ir.AttrString("v_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for value in (*node.inputs[_PAST_KEY : _PAST_VALUE + 1], *node.outputs[1:3]):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)


def _require_attention(graph: ir.Graph) -> list[ir.Node]:
    """The GroupQueryAttention nodes. Raises RecipeError if another op reads or writes the cache's values."""
    nodes: dict[ir.Node, None] = {}
    for value in graph.inputs:
        if (value.name or "").startswith(PAST):
            for node, place in value.uses():
                if node.op_type == "Shape":  # reads the batch size or the capacity, not the values
                    continue
                if node.op_type != "GroupQueryAttention" or place not in (_PAST_KEY, _PAST_VALUE):
                    raise _not_int8(value, f"read by {node.op_type} '{node.name}'")
                nodes[node] = None
    for value in graph.outputs:
        producer: Any = value.producer()
        if (value.name or "").startswith(PRESENT) and producer not in nodes:
            raise _not_int8(value, f"made by {producer.op_type} '{producer.name}'" if producer else "made by no node")
    if not nodes:
        raise RecipeError("the graph has no KV cache to quantize", hint=_FLOAT_CACHE)
    return list(nodes)


def _not_int8(value: ir.Value, how: str) -> RecipeError:
    return RecipeError(
        f"'{value.name}' is {how}, but only ONNX Runtime's GroupQueryAttention supports an int8 KV cache",
        hint=_FLOAT_CACHE,
    )
