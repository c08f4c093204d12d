"""Emulates a strongly typed float16 graph in float32, with every float16 value rounded to float16.

ONNX Runtime's CPU provider has no float16 kernels for most ops: it runs them in float32 and skips the rounding between
them, which hides overflows and rounding errors. A graph for a GPU cannot be verified against PyTorch like that. Here
explicit Cast nodes, which ONNX Runtime keeps, round each value to float16 and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecompress.graph.model import write_model
from edgecompress.lower.typed import FLOAT, HALF
from edgecompress.types.graph import Graph


def round_explicitly(model: ir.Model) -> int:
    """Rewrite ``model``, whose values must be typed, in place; return how many values are rounded.

    Inputs and outputs keep their types; a float16 cache stays float16.
    """
    graph = model.graph
    for name, constant in list(graph.initializers.items()):
        tensor = constant.const_value
        if tensor is not None and tensor.dtype == HALF:
            constant.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=name)
            constant.type = ir.TensorType(FLOAT)
    nodes = list(graph)
    for given in graph.inputs:
        if given.dtype == HALF:
            _widen(graph, given, list(given.uses()))
    rounded = 0
    for node in nodes:
        for value in node.outputs:
            if value.dtype != HALF:
                continue
            readers = list(value.uses())
            if node.op_type == "Cast":
                short = value
            else:
                value.type = ir.TensorType(FLOAT)
                short = _narrow(graph, node, value)
            _widen(graph, short, readers)
            rounded += 1
    return rounded


def _narrow(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Cast the value to float16; a graph output keeps its name."""
    cast = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{value.name}/round")
    graph.insert_after(node, cast)
    short = cast.outputs[0]
    short.type, short.shape = ir.TensorType(HALF), value.shape
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = short
            value.name, short.name = f"{value.name}.float32", value.name
    return short


def _widen(graph: ir.Graph, short: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
    """Let the readers of a float16 value read it as float32."""
    if not readers:
        return
    cast = ir.node("Cast", [short], {"to": int(FLOAT)}, name=f"{short.name}/rounded")
    made = short.producer()
    if made is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(made, cast)
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(FLOAT), short.shape
    for reader, index in readers:
        reader.replace_input_with(index, wide)


def rounded_graph(graph: Graph, out_dir: Path) -> Graph:
    """Write ``rounded-<precision>.onnx``, which emulates a typed graph on ONNX Runtime's CPU provider."""
    model = ir.load(graph.path)
    round_explicitly(model)
    path = out_dir / f"rounded-{graph.precision}.onnx"
    write_model(model, path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
