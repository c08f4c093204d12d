"""The shape of every value of a bundle's graph for one run, derived from the graph without running it.

Graphs hold symbolic shapes (``batch``, ``sequence``, …), and the run's sizes replace the symbols. A shape that a graph
pass dropped follows from the inputs' shapes by the rules below; else the value has no shape.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.errors import UsageError
from edgecompress.types.bundle import TensorSpec
from edgecompress.types.workload import GraphRun

Shape = tuple[int, ...]

_LIKE_INPUTS = (
    "Add", "Sub", "Mul", "Div", "Cast", "Gelu", "QuickGelu", "Relu", "Tanh", "Erf", "Sqrt", "Pow", "Sigmoid", "Softmax",
    "LayerNormalization", "SimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear", "Identity", "Clip",
)  # fmt: skip


_PACKING = "PackTokens"  # joins all texts' tokens in one row: the place of each in [B, T], and where texts begin


def input_shapes(specs: Sequence[TensorSpec], run: GraphRun) -> dict[str, Shape]:
    """Shapes of the graph's inputs, by name. Raises UsageError for an axis without a size."""
    return {spec.name: run.shapes.get(spec.name) or _resolved(spec, run.sizes) for spec in specs}


def _resolved(spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    try:
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
    except KeyError as error:
        raise UsageError(
            f"the workload gives no size for the axis {error} of '{spec.name}'", hint="Add it in its kind's profile.py."
        ) from None


def value_shapes(graph: ir.Graph, specs: Sequence[TensorSpec], run: GraphRun) -> dict[ir.Value, Shape]:
    """Of every value that has a shape, inside an If too. ``specs``: of the graph's inputs."""
    inputs, names = input_shapes(specs, run), dict(run.sizes)
    found: dict[ir.Value, Shape] = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.const_value is not None:
            found[value] = tuple(size for size in value.const_value.shape if isinstance(size, int))
        elif value.name in inputs:
            found[value] = inputs[value.name]
    for node in graph.all_nodes():
        if node.op_type == _PACKING:
            mask = node.inputs[0]
            batch, tokens = found[mask] if mask is not None and mask in found else (0, 0)
            names = {"tokens": batch * tokens, "places": batch * tokens, "starts": batch + 1} | names
        for output in node.outputs:
            shape = _known(output, names)
            if shape is None:
                shape = _by_rule(node, output, found)
            if shape is not None:
                found[output] = shape
    return found


def _known(value: ir.Value, names: Mapping[str, int]) -> Shape | None:
    if value.shape is None:
        return None
    sizes = [dim if isinstance(dim, int) else _evaluate(str(dim.value), names) for dim in value.shape]
    return None if any(size is None for size in sizes) else tuple(size for size in sizes if size is not None)


def _evaluate(text: str, names: Mapping[str, int]) -> int | None:
    """The value of ``Min(512, sequence)``, ``batch*sequence`` and the like; None if a name is unknown."""
    try:
        return _value(ast.parse(text, mode="eval").body, names)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr, names: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, names), _value(node.right, names)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.FloorDiv():
                return left // right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        several = {"Min": min, "Max": max, "min": min, "max": max}
        return several[node.func.id](_value(argument, names) for argument in node.args)
    raise ValueError(ast.dump(node))


def _by_rule(node: ir.Node, output: ir.Value, known: Mapping[ir.Value, Shape]) -> Shape | None:
    shapes = [known.get(value) for value in node.inputs if value is not None]
    if not shapes or shapes[0] is None:
        return None
    if node.op_type == "Gather" and len(shapes) > 1 and shapes[1] is not None:
        axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 0
        return shapes[0][:axis] + shapes[1] + shapes[0][axis + 1 :]
    if node.op_type == "DynamicQuantizeLinear":
        return shapes[0] if output is node.outputs[0] else ()  # scale and zero point
    if node.op_type not in _LIKE_INPUTS:
        return None
    try:
        return tuple(np.broadcast_shapes(*(shape for shape in shapes if shape is not None)))
    except ValueError:  # scales and axes: the first input decides
        return shapes[0]
