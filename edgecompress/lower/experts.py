"""Lowers ``edgecompress::Experts`` and ``BlockExperts`` to ONNX Runtime's ``com.microsoft::MoE`` and ``QMoE``.

Their CPU kernels (tested with 1.32) take "swiglu" with interleaved gate and up, any alpha, beta and limit, and biases.
They skip experts whose weight is not above zero. They also route by themselves, so their router input is built to
reproduce the model's routing:

- QMoE: the model's weights, scattered over all experts, both as router scores and as weights;
- MoE: the logarithms of the weights, -inf for other experts; its softmax makes them sum to one, and the output is
  multiplied by their original sum.

All other experts are written out as plain ops: each token gathers the (quantized) weights of its experts and multiplies
by them. That is exact but slow, and the report says so (``edgecompress/backends/contents.py``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import constant, replace_node

REASON = "edgecompress.gathered-experts"  # metadata key: why experts are gathered

_SMALLEST = float(np.finfo(np.float32).tiny)


class _Steps:
    """Inserts nodes before another node, named after it."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.parent = (node.name or "experts").rpartition("/")[0]
        self.count = 0

    def add(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        self.count += 1
        name = f"{self.parent}/{op}_{self.count}"
        made = ir.node(op, list(inputs), attributes=attributes, domain=domain, name=name)  # type: ignore[arg-type]
        self.graph.insert_before(self.node, made)
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return made.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        name = "graph/ints_" + "_".join(map(str, numbers))
        return constant(self.graph, name, np.array(numbers, dtype=np.int64))

    def number(self, value: float) -> ir.Value:
        return constant(self.graph, f"graph/number_{value}", np.array(value, dtype=np.float32))


def lower_experts(model: ir.Model) -> int:
    """Rewrite every Experts and BlockExperts of ``model`` in place; return how many there were."""
    nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type in ("Experts", "BlockExperts")]
    for node in nodes:
        steps = _Steps(model.graph, node)
        reason = why_not(node)
        if reason is not None:
            model.metadata_props[REASON] = reason
            replace_node(model.graph, node, _gathered(steps, node))
        elif node.op_type == "Experts":
            replace_node(model.graph, node, _moe(steps, node))
        else:
            replace_node(model.graph, node, _qmoe(steps, node))
    if nodes:
        model.opset_imports[MICROSOFT] = 1
    return len(nodes)


def why_not(node: ir.Node) -> str | None:
    """Why the kernels cannot compute ``node``; None if they can."""
    activation = node.attributes["activation"].as_string()
    if activation != "swiglu":
        return f"ONNX Runtime's CPU kernels gate experts by swiglu only, and these are gated by {activation}"
    if not never_negative(node.inputs[2]):
        return "ONNX Runtime's CPU kernels skip experts whose weight is not above zero, and these weights may be below"
    return None


def _attributes(node: ir.Node) -> dict[str, object]:
    found: dict[str, object] = {
        "k": node.attributes["k"].as_int(),
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": node.attributes["alpha"].as_float(),
        "activation_beta": node.attributes["beta"].as_float(),
    }
    if "limit" in node.attributes:
        found["swiglu_limit"] = node.attributes["limit"].as_float()
    return found


def _moe(steps: _Steps, node: ir.Node) -> ir.Node:
    x, chosen, weights, gate_up, down, gate_up_bias, down_bias = [*node.inputs, None, None][:7]
    assert gate_up is not None
    logarithms = steps.add("Log", steps.add("Max", weights, steps.number(_SMALLEST)))
    router = _scattered(steps, x, chosen, logarithms, experts=_experts(gate_up), rest=-np.inf)
    inputs = [x, router, gate_up, gate_up_bias, down, down_bias]
    while inputs[-1] is None:
        inputs.pop()
    mean = steps.add("MoE", *inputs, domain=MICROSOFT, **_attributes(node))
    total = steps.add("ReduceSum", weights, steps.ints(1), keepdims=1)
    return ir.node("Mul", [mean, total], name=f"{steps.parent}/Mul")


def _qmoe(steps: _Steps, node: ir.Node) -> ir.Node:
    x, chosen, weights, gate_up, gate_up_scale, gate_up_zero, gate_up_bias, down, down_scale, down_zero, down_bias = [
        *node.inputs, None, None
    ][:11]  # fmt: skip
    assert gate_up is not None
    router = _scattered(steps, x, chosen, weights, experts=_experts(gate_up), rest=0.0)
    inputs = [x, router, gate_up, gate_up_scale, gate_up_bias, down, down_scale, down_bias, None, None, None]
    inputs += [gate_up_zero, down_zero, None, router]
    attributes = _attributes(node) | {
        "expert_weight_bits": node.attributes["bits"].as_int(),
        "block_size": node.attributes["block_size"].as_int(),
        "accuracy_level": node.attributes["accuracy_level"].as_int(),
    }
    return ir.node("QMoE", inputs, attributes=attributes, domain=MICROSOFT, name=f"{steps.parent}/QMoE")  # type: ignore[arg-type]


def _experts(weight: ir.Value) -> int:
    assert weight.const_value is not None
    return int(weight.const_value.shape[0])  # type: ignore[arg-type]


def _scattered(
    steps: _Steps, x: ir.Value | None, chosen: ir.Value | None, values: ir.Value | None, *, experts: int, rest: float
) -> ir.Value:
    """values [N, k] of the chosen experts -> [N, E], ``rest`` for the others."""
    tokens = steps.add("Shape", x, start=0, end=1)
    tokens.type = ir.TensorType(ir.DataType.INT64)
    shape = steps.add("Concat", tokens, steps.ints(experts), axis=0)
    shape.type = ir.TensorType(ir.DataType.INT64)
    empty = steps.add("ConstantOfShape", shape, value=ir.tensor(np.array([rest], dtype=np.float32)))
    return steps.add("ScatterElements", empty, chosen, values, axis=1)


def _gathered(steps: _Steps, node: ir.Node) -> ir.Node:
    """Multiply x [N, H] by the weights of the chosen experts, [N, k, 2 I, H] and [N, k, H, I]."""
    x, chosen, weights = node.inputs[:3]
    if node.op_type == "Experts":
        gate_up, down, gate_up_bias, down_bias = [*node.inputs[3:], None, None][:4]
        first, second = (steps.add("Gather", weight, chosen, axis=0) for weight in (gate_up, down))
    else:
        packed = [*node.inputs[3:], None, None][:8]
        first, second = (_dequantized(steps, node, chosen, packed[i : i + 3]) for i in (0, 4))
        gate_up_bias, down_bias = packed[3], packed[7]
    column = steps.add("Unsqueeze", x, steps.ints(1, 3))  # [N, 1, H, 1]
    inner = steps.add("MatMul", first, column)  # [N, k, 2 I, 1]
    if gate_up_bias is not None:
        bias = steps.add("Gather", gate_up_bias, chosen, axis=0)
        inner = steps.add("Add", inner, steps.add("Unsqueeze", bias, steps.ints(3)))
    pairs = steps.add("Reshape", inner, steps.ints(0, 0, -1, 2))
    gate, up = (steps.add("Slice", pairs, *(steps.ints(n) for n in (at, at + 1, 3))) for at in (0, 1))
    outer = steps.add("MatMul", second, _activated(steps, node, gate, up))  # [N, k, H, 1]
    rows = steps.add("Squeeze", outer, steps.ints(3))
    if down_bias is not None:
        rows = steps.add("Add", rows, steps.add("Gather", down_bias, chosen, axis=0))
    weighted = steps.add("Mul", rows, steps.add("Unsqueeze", weights, steps.ints(2)))
    return ir.node("ReduceSum", [weighted, steps.ints(1)], attributes={"keepdims": 0}, name=f"{steps.parent}/ReduceSum")


def _dequantized(steps: _Steps, node: ir.Node, chosen: ir.Value | None, stored: list[ir.Value | None]) -> ir.Value:
    """``stored``: packed weight, scales and zero points."""
    packed, scale, zero = stored
    inputs = [packed, chosen, scale, *([zero] if zero is not None else [])]
    bits, block = node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()
    return steps.add(
        "GatherBlockQuantized", *inputs, domain=MICROSOFT, bits=bits, block_size=block, gather_axis=0, quantize_axis=2
    )


def _activated(steps: _Steps, node: ir.Node, gate: ir.Value, up: ir.Value) -> ir.Value:
    activation = node.attributes["activation"].as_string()
    if activation == "relu":
        return steps.add("Mul", steps.add("Relu", gate), up)
    if activation != "swiglu":
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        return steps.add("Mul", steps.add("Gelu", gate, approximate=approximate), up)
    alpha, beta = node.attributes["alpha"].as_float(), node.attributes["beta"].as_float()
    if "limit" in node.attributes:
        limit = node.attributes["limit"].as_float()
        gate = steps.add("Min", gate, steps.number(limit))
        up = steps.add("Clip", up, steps.number(-limit), steps.number(limit))
    if beta:
        up = steps.add("Add", up, steps.number(beta))
    turned = steps.add("Sigmoid", steps.add("Mul", gate, steps.number(alpha)) if alpha != 1 else gate)
    return steps.add("Mul", steps.add("Mul", gate, turned), up)


# --- weights that are never below zero

_POSITIVE = {"Softmax", "Sigmoid", "Exp", "Relu", "Abs", "Softplus"}
_MOVING = {
    "TopK", "Gather", "GatherElements", "GatherND", "Reshape", "Cast", "CastLike", "Squeeze", "Unsqueeze", "Slice",
    "Identity", "Transpose", "ReduceSum", "ReduceMax", "ReduceMean", "Sqrt", "Expand", "Clip",
}  # fmt: skip
_COMBINING = {"Add", "Mul", "Div", "Concat", "Min"}


def never_negative(value: ir.Value | None) -> bool:
    """True if the ops that compute ``value`` guarantee that no element is below zero."""
    if value is None:
        return False
    if value.const_value is not None:
        return bool((value.const_value.numpy() >= 0).all())
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in _POSITIVE:
        return True
    if node.op_type in _MOVING:
        return never_negative(node.inputs[0])
    if node.op_type in _COMBINING:
        return all(never_negative(i) for i in node.inputs)
    if node.op_type == "Max":
        return any(never_negative(i) for i in node.inputs)
    return False
