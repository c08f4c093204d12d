"""Packs linear layers that read the same input: query, key and value of attention, gate and up of an MLP.

A portable pass on float weights, before quantization. One wide product reads its input only once, and attention ops
accept packed query, key and value. Weights are joined only when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.graph.linears import Linear, find_linears
from edgecompress.graph.ops import DOMAIN

_MOVING = ("Reshape", "Transpose", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze")
_TURNING = ("Mul", "Add", "Sub", "Neg")  # a rotary embedding that capture did not recognise
_OWN = ("Rotary", "RMSNorm")


def pack_linears(model: ir.Model) -> list[str]:
    """Pack in place; return the names of the packed layers, usually ``…qkv_proj`` and ``…gate_up_proj``."""
    made = []
    linears = find_linears(model)
    by_output = {linear.output: linear for linear in linears}
    taken: set[str] = set()
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == "CachedAttention"]:
        found = [_source(value, by_output) for value in node.inputs[:3]]
        group = [linear for linear in found if linear is not None]
        distinct = len({linear.name for linear in group}) == 3
        if distinct and len({id(linear.x) for linear in group}) == 1:
            made.append(_pack(model.graph, group, "qkv"))
            taken |= {linear.name for linear in group}
    rest: dict[tuple[ir.Value, int, int], list[Linear]] = {}
    for linear in linears:
        if linear.name not in taken:
            rest.setdefault((linear.x, *_shape(linear)), []).append(linear)
    for siblings in rest.values():
        if len(siblings) == 2:
            stems = (linear.name.rpartition(".")[2].removesuffix("_proj") for linear in siblings)
            made.append(_pack(model.graph, siblings, "_".join(stems)))
    return made


def _source(value: ir.Value | None, by_output: dict[ir.Value, Linear]) -> Linear | None:
    """The linear layer whose moved, rotated or normalized output is ``value``; None if it is not exactly one."""
    found: dict[str, Linear] = {}
    waiting = [value]
    seen: set[ir.Value] = set()
    while waiting:
        current = waiting.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        if current in by_output:
            found[by_output[current].name] = by_output[current]
            continue
        node = current.producer()
        if node is None:
            continue
        if node.domain == DOMAIN and node.op_type in _OWN:
            waiting.append(node.inputs[0])
        elif not node.domain and node.op_type in (*_MOVING, *_TURNING):
            waiting.extend(node.inputs)
    return next(iter(found.values())) if len(found) == 1 else None


def _shape(linear: Linear) -> tuple[int, int]:
    assert linear.weight.const_value is not None
    k, n = (int(size) for size in linear.weight.const_value.shape)  # type: ignore[arg-type]
    return k, n


def _pack(graph: ir.Graph, group: Sequence[Linear], kind: str) -> str:
    """Replace ``group`` by one MatMul (and Add) and a Split; return the new layer's name."""
    name = _name(graph, group, kind)
    widths = [_shape(linear)[1] for linear in group]
    first = group[0]
    weight = _side_by_side(graph, f"{name}.weight", [linear.weight for linear in group])
    product = ir.node("MatMul", [first.x, weight], name=f"{name}/MatMul")
    nodes = [product]
    if any(linear.bias is not None for linear in group):
        bias = _bias(graph, f"{name}.bias", group, widths)
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=f"{name}/Add"))
    sizes = ir.tensor(np.array(widths, dtype=np.int64), name=f"{name}.widths")
    split = ir.node(
        "Split",
        [nodes[-1].outputs[0], _register(graph, sizes)],
        attributes={"axis": -1},
        num_outputs=len(group),
        name=f"{name}/Split",
    )
    lead = first.output.shape
    for node in nodes:
        node.outputs[0].type = first.output.type
        node.outputs[0].shape = ir.Shape([*list(lead)[:-1], sum(widths)]) if lead is not None else None
    anchor = min((linear.matmul for linear in group), key=lambda node: _position(graph, node))
    graph.insert_before(anchor, [*nodes, split])
    for linear, part in zip(group, split.outputs, strict=True):
        old = linear.output
        label = old.name
        part.type, part.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, part, replace_graph_outputs=True)
        if linear.add is not None:
            graph.remove(linear.add, safe=True)
        graph.remove(linear.matmul, safe=True)
        part.name = label  # calibration finds values by name
    for linear in group:
        for value in (linear.weight, linear.bias):
            if value is not None and value.name is not None and not value.uses():
                graph.initializers.pop(value.name, None)
    return name


def _position(graph: ir.Graph, node: ir.Node) -> int:
    return next(index for index, other in enumerate(graph) if other is node)


def _name(graph: ir.Graph, group: Sequence[Linear], kind: str) -> str:
    """``a.q_proj``, ``a.k_proj``, ``a.v_proj`` -> ``a.qkv_proj``."""
    parent = group[0].name.rpartition(".")[0]
    name = f"{parent}.{kind}_proj" if parent else f"{kind}_proj"
    while f"{name}.weight" in graph.initializers:
        name += "_2"
    return name


def _side_by_side(graph: ir.Graph, name: str, weights: Sequence[ir.Value]) -> ir.Value:
    """[K, N1], [K, N2], … -> [K, N1 + N2 + …], joined when it is read."""
    tensors = [weight.const_value for weight in weights]

    def read() -> ir.TensorProtocol:
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return ir.tensor(np.concatenate(arrays, axis=1), name=name)

    sizes = [tensor.shape.numpy() for tensor in tensors if tensor is not None]
    lazy = ir.LazyTensor(
        read, dtype=ir.DataType.FLOAT, shape=ir.Shape([sizes[0][0], sum(size[1] for size in sizes)]), name=name
    )
    return _register(graph, lazy)


def _bias(graph: ir.Graph, name: str, group: Sequence[Linear], widths: Sequence[int]) -> ir.Value:
    parts = [
        linear.bias_array() if linear.bias is not None else np.zeros(width, dtype=np.float32)
        for linear, width in zip(group, widths, strict=True)
    ]
    return _register(graph, ir.tensor(np.concatenate(parts), name=name))


def _register(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
