"""Types a float32 graph of standard ops: float16 where it is safe, float32 where values could overflow.

- Products with a constant, attention, rotary embeddings and lookups compute in float16.
- Ops that move, add, multiply or gate values, or round them to 8 bits, have the type of their inputs.
- Everything else computes in float32: norms, softmax, sums, square roots, products of two computed values (pooling).
- So does every op that reads or writes a value close to float16's limit on the calibration text (``wide``).

Inputs and outputs of the graph keep their types, except a KV cache, which becomes float16. Scales are constants in the
type of their Q or DQ. A value is cast once for all ops that read it in the other type.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT

_MOVING = (
    "Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Identity", "Flatten", "Pad",
)  # fmt: skip
_FOLLOWING = (*_MOVING, "Add", "Sub", "Mul", "Gelu", "Relu", "Tanh", "Sigmoid", "QuickGelu", "QuantizeLinear")
_CACHES = ("TensorScatter", "GroupQueryAttention")
_ATTENTION = ("Attention", "MultiHeadAttention", "RotaryEmbedding")
_HALF = (*_ATTENTION, *_CACHES, "Gather", "DequantizeLinear", "Conv", "Gemm")
_READS_SHAPE = ("Shape", "Size")


def strongly_typed(model: ir.Model, wide: Collection[str] = ()) -> int:
    """Type ``model``, whose values must already have types, in place; return how many nodes become float16.

    ``wide`` names float32 values beyond float16's range.
    """
    graph = model.graph
    too_wide = _spread(graph, wide)
    types: dict[ir.Value, ir.DataType] = {
        value: HALF if any(reader.op_type in _CACHES for reader, _ in value.uses()) else FLOAT
        for value in graph.inputs
        if value.dtype == FLOAT
    }
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    halves = 0
    for node in list(graph):
        floats = [i for i, value in enumerate(node.inputs) if value is not None and value.dtype == FLOAT]
        kind = _type_of(node, types, too_wide)
        if node.op_type not in _READS_SHAPE:
            for index in floats:
                value = node.inputs[index]
                assert value is not None
                node.replace_input_with(index, _as(graph, node, value, kind, types, casts))
        for output in node.outputs:
            if output.dtype == FLOAT:
                types[output] = kind
        halves += kind == HALF
    for output in list(graph.outputs):
        if types.get(output) == HALF and not _makes(output, *_CACHES):
            _keep_type(graph, output)
    for value, kind in types.items():
        if kind == HALF and (not value.is_graph_output() or _makes(value, *_CACHES)):
            value.type = ir.TensorType(HALF)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    return halves


def computes_in_half(node: ir.Node) -> bool:
    """Whether the node computes new float values that may be float16; nodes that only move values do not."""
    return not node.domain and node.op_type not in _MOVING and node.op_type in (*_FOLLOWING, *_HALF, "MatMul")


def _spread(graph: ir.Graph, wide: Collection[str]) -> set[ir.Value]:
    """The wide values, and what must stay float32 with them: their sources before moves, the product to which a bias
    is added, their Q/DQ results, and their weights.

    A product has its own name only if it was not quantized.
    """
    found = {value for node in graph for value in node.outputs if value.name in wide}
    waiting = list(found)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node.op_type not in ("Add", *_MOVING):
            continue
        moves = node.op_type in _MOVING
        made_of = {v for v in node.inputs if v is not None and v.dtype == FLOAT and (moves or _makes(v, "MatMul"))}
        waiting += made_of - found
        found |= made_of
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0] in found:
            found |= set(node.outputs)
    for node in graph:
        if node.op_type == "MatMul" and (found & {*node.inputs, *node.outputs}):
            found |= {value for value in node.inputs if value is not None and _is_weight(value)}
    return found


def _type_of(node: ir.Node, types: dict[ir.Value, ir.DataType], wide: set[ir.Value]) -> ir.DataType:
    """The type that the node computes in."""
    if any(value in wide for value in (*node.inputs, *node.outputs)):
        return FLOAT
    if node.op_type in _HALF:
        return HALF
    if node.op_type == "MatMul":
        return HALF if any(value is not None and _is_weight(value) for value in node.inputs) else FLOAT
    if node.op_type in _FOLLOWING:
        read = {types[value] for value in node.inputs if value in types}
        return HALF if read == {HALF} else FLOAT
    return FLOAT


def _makes(value: ir.Value, *ops: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type in ops


def _is_weight(value: ir.Value) -> bool:
    """Whether it is a constant, or the DQ of a constant."""
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear":
        first = node.inputs[0]
        return first is not None and first.const_value is not None
    return value.const_value is not None


def _as(
    graph: ir.Graph,
    node: ir.Node,
    value: ir.Value,
    kind: ir.DataType,
    types: dict[ir.Value, ir.DataType],
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """The value in that type: unchanged, as a converted constant, or through a Cast created on first use."""
    constant = value.const_value
    if types.get(value, FLOAT) == kind:
        return value
    key = (value, kind)
    if key in casts:
        return casts[key]
    if constant is not None:
        half = ir.Value(
            name=f"{value.name}.float16",
            shape=value.shape,
            type=ir.TensorType(HALF),
            const_value=ir.tensor(_half(constant), name=f"{value.name}.float16"),
        )
        graph.register_initializer(half)
        casts[key] = half
        return half
    cast = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}/to_{kind.name.lower()}")
    graph.insert_before(node, cast)
    made = cast.outputs[0]
    made.type, made.shape = ir.TensorType(kind), value.shape
    types[made] = kind
    casts[key] = made
    return made


def _half(tensor: ir.TensorProtocol) -> npt.NDArray[np.float16]:
    """Convert to float16; values beyond its range become its largest, not infinity (as a mask's lowest float)."""
    largest = float(np.finfo(np.float16).max)
    array = tensor.numpy()
    return np.where(np.isfinite(array), np.clip(array, -largest, largest), array).astype(np.float16)


def _keep_type(graph: ir.Graph, output: ir.Value) -> None:
    """Cast a graph output back to float32, under its name."""
    node = output.producer()
    assert node is not None
    cast = ir.node("Cast", [output], {"to": int(FLOAT)}, name=f"{output.name}/to_float")
    graph.insert_after(node, cast)
    made, name = cast.outputs[0], output.name
    made.type, made.shape = ir.TensorType(FLOAT), output.shape
    graph.outputs[list(graph.outputs).index(output)] = made
    output.name = f"{name}.float16"
    made.name = name
    output.type = ir.TensorType(HALF)
