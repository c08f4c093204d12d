"""Finds what can be quantized: linear layers with a constant weight, and embedding tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN
from edgecompress.types.arrays import FloatArray

MIN_TABLE_ELEMENTS = 65_536  # smaller tables do not justify a Gather of their scales


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``output = x @ weight + bias``: a MatMul and, optionally, the Add after it."""

    name: str
    matmul: ir.Node
    add: ir.Node | None
    weight: ir.Value  # [K, N]
    bias: ir.Value | None  # [N]

    @property
    def x(self) -> ir.Value:
        """The current input, which changes when the layer before it is replaced."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return (self.add or self.matmul).outputs[0]

    @property
    def width(self) -> int:
        """K, known without reading the weight."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.shape[0])  # type: ignore[arg-type]

    @property
    def columns(self) -> int:
        """N, known without reading the weight."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.shape[1])  # type: ignore[arg-type]

    def weight_array(self) -> FloatArray:
        """float32 [K, N]"""
        assert self.weight.const_value is not None
        return self.weight.const_value.numpy().astype(np.float32, copy=False)

    def bias_array(self) -> FloatArray:
        """float32 [N]; zeros if the layer has none."""
        if self.bias is None or self.bias.const_value is None:
            return np.zeros(self.weight_array().shape[1], dtype=np.float32)
        return self.bias.const_value.numpy().astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """``Gather(table, ids)`` with a constant float table [V, H]."""

    name: str
    gather: ir.Node
    table: ir.Value
    ids: ir.Value


def find_linears(model: ir.Model) -> list[Linear]:
    """Every MatMul whose right side is a constant float32 matrix, in graph order."""
    found = []
    for node in model.graph:
        if node.domain or node.op_type != "MatMul":
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or not _is_float_constant(weight, rank=2) or _is_float_constant(x, rank=2):
            continue
        assert weight is not None
        add, bias = _bias(node, width=int(weight.shape[1]))  # type: ignore[index,arg-type]
        name = (node.name or "linear").removesuffix("/MatMul")
        found.append(Linear(name=name, matmul=node, add=add, weight=weight, bias=bias))
    return found


def find_residuals(linears: Sequence[Linear]) -> list[ir.Node]:
    """Every Add of a linear layer's output and another computed value, in graph order of the layers."""
    found: dict[ir.Node, None] = {}
    for linear in linears:
        for node, _ in linear.output.uses():
            computed = all(value is not None and value.const_value is None for value in node.inputs)
            if not node.domain and node.op_type == "Add" and computed:
                found[node] = None
    return list(found)


def find_embeddings(model: ir.Model) -> list[Embedding]:
    """Every Gather along axis 0 from a constant float32 table that is large enough to matter."""
    found = []
    for node in model.graph:
        if node.domain or node.op_type != "Gather":
            continue
        axis = node.attributes.get("axis")
        table, ids = node.inputs[0], node.inputs[1]
        if (axis is not None and axis.as_int() != 0) or ids is None or not _is_float_constant(table, rank=2):
            continue
        assert table is not None
        assert table.const_value is not None
        if table.const_value.size < MIN_TABLE_ELEMENTS:
            continue
        name = (node.name or "embedding").removesuffix("/Gather")
        found.append(Embedding(name=name, gather=node, table=table, ids=ids))
    return found


def _is_float_constant(value: ir.Value | None, rank: int) -> bool:
    constant = value.const_value if value is not None else None
    return constant is not None and constant.dtype == ir.DataType.FLOAT and len(constant.shape) == rank


def _bias(matmul: ir.Node, width: int) -> tuple[ir.Node | None, ir.Value | None]:
    uses = list(matmul.outputs[0].uses())
    if len(uses) != 1 or matmul.outputs[0].is_graph_output():
        return None, None
    add = uses[0][0]
    if add.domain or add.op_type != "Add":
        return None, None
    other = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    if other is None or not _is_float_constant(other, rank=1) or int(other.shape[0]) != width:  # type: ignore[index,arg-type]
        return None, None
    return add, other


def replace_linear(
    graph: ir.Graph, linear: Linear, inputs: Sequence[ir.Value | None], op: str, attributes: Mapping[str, int]
) -> None:
    """Replace the MatMul and its Add by one portable op."""
    node = ir.node(op, list(inputs), attributes=dict(attributes), domain=DOMAIN, name=f"{linear.name}/{op}")
    out, old = node.outputs[0], linear.output
    out.type, out.shape = old.type, old.shape
    graph.insert_before(linear.matmul, node)
    name = old.name
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    if linear.add is not None:
        graph.remove(linear.add, safe=True)
    graph.remove(linear.matmul, safe=True)
    out.name = name
