"""What one node of a graph must compute and move, on any machine: operations, their dtype, and bytes.

A multiply-add is two operations; a node without products counts one for each element of its outputs. Bytes are weights
and inputs read once and outputs written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from edgecompress_kernels.cpu.abi import DECODER_LAYER, StepField, StepKind

from edgecompress.profile.shapes import Shape

FLOAT32, INT8 = "float32", "int8"

_NOTHING = (
    "Shape",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Constant",
    "ConstantOfShape",
    "If",
    "Size",
    "Flatten",
)
_LOOKUPS = ("Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "Slice")
_PROGRAM = DECODER_LAYER.input_index("program")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``ops`` in products of the dtype ``computes``; ``bytes`` moved; ``weights``: storage of block-wise weights."""

    ops: float
    bytes: int
    computes: str
    weights: str = ""


@dataclass(frozen=True)
class _Node:
    """A node with the shapes of its values."""

    node: ir.Node
    shapes: Mapping[ir.Value, Shape]

    def shape(self, index: int) -> Shape:
        """Shape of an input. Raises KeyError if it is unknown or missing."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise KeyError(index)
        return self.shapes[value]

    def attribute(self, name: str, default: Any = None) -> Any:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def bytes_of(self, value: ir.Value | None) -> int:
        shape = self.shapes.get(value) if value is not None else None
        if shape is None or value is None or value.dtype is None:
            return 0
        return math.ceil(math.prod(shape) * value.dtype.bitwidth / 8)

    def weights(self) -> int:
        """Bytes of its constant inputs."""
        values = {value for value in self.node.inputs if value is not None and value.const_value is not None}
        return sum(self.bytes_of(value) for value in values)

    def read(self) -> int:
        """Bytes of all inputs."""
        return sum(self.bytes_of(value) for value in {v for v in self.node.inputs if v is not None})

    def written(self) -> int:
        return sum(self.bytes_of(value) for value in self.node.outputs)


def cost(node: ir.Node, shapes: Mapping[ir.Value, Shape]) -> Cost:
    """Cost of one node; ``shapes``: of the graph's values, where a cache is as long as its content."""
    seen = _Node(node, shapes)
    if node.op_type in _NOTHING:
        return Cost(ops=0, bytes=0, computes=FLOAT32)
    rule = _RULES.get(node.op_type)
    if rule is not None:
        try:
            return rule(seen)
        except KeyError:
            pass  # a shape is unknown: what follows is a lower bound
    written = seen.written()
    if node.op_type in _LOOKUPS:  # only the elements that it picks
        return Cost(ops=0, bytes=2 * written, computes=FLOAT32)
    numbers = sum(math.prod(shapes[value]) for value in node.outputs if value in shapes)
    return Cost(ops=numbers, bytes=seen.read() + written, computes=FLOAT32)


def _whole(seen: _Node, ops: float, computes: str) -> Cost:
    return Cost(ops=ops, bytes=seen.read() + seen.written(), computes=computes)


def _product(computes: str, weights: int = 1) -> Callable[[_Node], Cost]:
    """Matrix products of [..., M, K] by [..., K, N], either of which may be transposed."""

    def rule(seen: _Node) -> Cost:
        left, right = seen.shape(0), seen.shape(weights)
        turned = bool(seen.attribute("transB") or (seen.attribute("transA") and len(left) == 2))
        k = left[-2] if seen.attribute("transA") else left[-1]
        n = right[-2] if turned and seen.attribute("transB") else right[-1]
        rows = math.prod(left) // max(1, k)
        value = seen.node.inputs[0]
        half = value is not None and value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        return _whole(seen, 2.0 * rows * k * n, "float16" if half and computes == FLOAT32 else computes)

    return rule


def _blockwise(seen: _Node) -> Cost:
    rows = math.prod(seen.shape(0)[:-1])
    level = int(seen.attribute("accuracy_level", 4 if seen.node.op_type == "MatMulBlocks" else 0))
    ops = 2.0 * rows * int(seen.attribute("K")) * int(seen.attribute("N"))
    whole = _whole(seen, ops, INT8 if level == 4 else FLOAT32)
    return replace(whole, weights=f"int{int(seen.attribute('bits', 4))}")


def _attended(tokens: int, past: int, *, causal: bool, window: int = -1) -> float:
    """Keys per token, on average."""
    seen = past + (tokens + 1) / 2 if causal else float(past + tokens)
    return min(seen, float(window)) if window > 0 else seen


def _attention(seen: _Node) -> Cost:
    """Attention of encoders: queries [B, T, H * D], keys [B, S, H * D]."""
    query = seen.shape(0)
    keys = query if len(seen.node.inputs) < 2 or seen.node.inputs[1] is None else seen.shape(1)
    if len(query) == 4:  # [B, H, T, D]
        batch, width, length, across = query[0], query[1] * query[3], query[2], keys[2]
    else:
        batch, width, length, across = query[0], math.prod(query[2:]), query[1], keys[1]
    past = _past(seen)
    causal = bool(seen.attribute("is_causal") or seen.attribute("unidirectional")) or bool(past)
    each = _attended(length, past, causal=True) if causal else float(across)
    value = seen.node.inputs[0]
    half = value is not None and value.dtype == ir.DataType.FLOAT16
    return _whole(seen, 4.0 * batch * length * width * each, "float16" if half else FLOAT32)


def _past(seen: _Node) -> int:
    """Tokens in a node's cache input."""
    caches = [value for value in seen.node.inputs if value is not None and "past" in (value.name or "")]
    return max((seen.shapes[value][2] for value in caches if len(seen.shapes.get(value, ())) == 4), default=0)


def _cached(seen: _Node, index: int, tokens: int) -> tuple[float, int]:
    """Operations, and bytes of the cache, of attention behind it.

    ``index``: of the input that its keys are, [B, Hk, P, D]; ``tokens``: new ones of each text. The cache's keys
    and values are read once, and those of the new tokens written.
    """
    heads, kv_heads = int(seen.attribute("num_heads")), int(seen.attribute("kv_num_heads"))
    batch, _, past, size = seen.shape(index)
    each = _attended(tokens, past, causal=True, window=int(seen.attribute("local_window_size", -1)))
    keys = seen.node.inputs[index]
    width = 1 if keys is not None and keys.dtype == ir.DataType.INT8 else 4
    return 4.0 * batch * tokens * heads * size * each, 2 * width * batch * kv_heads * size * (past + 2 * tokens)


def _cached_attention(seen: _Node) -> Cost:
    ops, cache = _cached(seen, 3, seen.shape(0)[1])
    rows = sum(seen.bytes_of(value) for value in seen.node.inputs[:3]) + seen.bytes_of(seen.node.outputs[0])
    return Cost(ops=ops, bytes=rows + cache, computes=FLOAT32)


def _decoder_layer(seen: _Node) -> Cost:
    """The products of the op's program, and its attention; rows between its steps stay in the CPU's caches.

    Of the position tables, only the rows of these tokens are read.
    """
    program = seen.node.inputs[_PROGRAM]
    if program is None or program.const_value is None:
        raise KeyError(_PROGRAM)
    behind = seen.node.inputs[_PROGRAM + 1 :]
    batch, tokens = seen.shape(_PROGRAM + 1)[:2]
    ops, cache = _cached(seen, 0, tokens)
    rows, bits = batch * tokens, [0]
    for step in program.const_value.numpy()[1:].tolist():
        if step[StepField.KIND] == StepKind.MATMUL:
            ops += 2.0 * rows * step[StepField.INPUTS] * step[StepField.OUTPUTS]
            bits.append(step[StepField.BITS])
    weights = sum(seen.bytes_of(value) for value in set(behind) if value is not None and value.const_value is not None)
    moved = weights + seen.bytes_of(behind[0]) + seen.bytes_of(seen.node.outputs[0])
    return Cost(ops=ops, bytes=moved + cache, computes=INT8, weights=f"int{max(bits)}")


def _encoder_projections(seen: _Node) -> Cost:
    rows, hidden = seen.shape(0)
    return Cost(ops=6.0 * rows * hidden * hidden, bytes=seen.weights() + 7 * rows * hidden, computes=INT8)


def _encoder_layer(seen: _Node) -> Cost:
    """Attention, output projection, feed-forward network, and the next layer's projections if it computes them."""
    rows, hidden = seen.shape(0)
    between = int(seen.attribute("feed_forward"))
    last, texts = not list(seen.node.outputs[1].uses()), seen.shape(2)[0] - 1
    products = hidden * hidden + 2 * hidden * between + (0 if last else 3 * hidden * hidden)
    ops = 2.0 * rows * products + 4.0 * rows * (rows // texts) * hidden
    return Cost(ops=ops, bytes=seen.weights() + (11 if last else 14) * rows * hidden, computes=INT8)


def _convolution(seen: _Node) -> Cost:
    kernel = seen.shape(1)
    output = seen.shapes[seen.node.outputs[0]]
    return _whole(seen, 2.0 * math.prod(output) * math.prod(kernel[1:]), FLOAT32)


def _experts(seen: _Node) -> Cost:
    """A mixture of experts: each row goes through ``k`` of them, and each expert that gets a row is read once."""
    rows, chosen = math.prod(seen.shape(0)[:-1]), int(seen.attribute("k", 1))
    stored = [
        (value, shape)
        for value in seen.node.inputs[2:]
        if value is not None and value.const_value is not None and len(shape := seen.shapes.get(value, ())) == 3
    ]
    if not stored:
        raise KeyError(2)
    bits = int(seen.attribute("expert_weight_bits", 32))
    numbers = sum(math.prod(shape) * (8 // bits if bits < 8 else 1) for _, shape in stored)
    experts = stored[0][1][0]
    met = min(experts, rows * chosen)
    weights = sum(seen.bytes_of(value) for value, _ in stored) * met // experts
    ops = 2.0 * rows * chosen * numbers / experts
    return Cost(ops=ops, bytes=weights + seen.bytes_of(seen.node.inputs[0]) + seen.written(), computes=FLOAT32)


_RULES: Mapping[str, Callable[[_Node], Cost]] = {
    "MatMul": _product(FLOAT32),
    "Gemm": _product(FLOAT32),
    "FusedMatMul": _product(FLOAT32),
    "FusedGemm": _product(FLOAT32),
    "MatMulInteger": _product(INT8),
    "DynamicQuantizeMatMul": _product(INT8),
    "MatMulIntegerToFloat": _product(INT8),
    "QLinearMatMul": _product(INT8, weights=3),
    "QGemm": _product(INT8, weights=3),
    "MatMulNBits": _blockwise,
    "MatMulBlocks": _blockwise,
    "MultiHeadAttention": _attention,
    "Attention": _attention,
    "GroupQueryAttention": _cached_attention,
    "CachedAttention": _cached_attention,
    "CachedAttentionInt8": _cached_attention,
    "DecoderLayer": _decoder_layer,
    "DecoderLayerInt8": _decoder_layer,
    "EncoderProjections": _encoder_projections,
    "EncoderLayer": _encoder_layer,
    "Conv": _convolution,
    "MoE": _experts,
    "QMoE": _experts,
}
