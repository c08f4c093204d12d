"""A strongly typed graph as float32 that is rounded to float16 wherever the graph is float16.

ONNX Runtime's CPU provider has no float16 kernels for most ops: it runs them in float32 and leaves out the rounding
between two of them, so that nothing overflows and nothing is lost. What is to run on a GPU cannot be held against
PyTorch like that. Here each value is cast to float16 and back by nodes of the graph's own, which are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecompress.capture.export import write_model
from edgecompress.lower.typed import FLOAT, HALF
from edgecompress.types.graph import Graph


def round_explicitly(model: ir.Model) -> int:
    """Rewrite ``model``, whose values have their types, in place; return how many values are rounded."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == HALF:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=name)
            value.type = ir.TensorType(FLOAT)
    rounded = 0
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != HALF:
                continue
            value.type = ir.TensorType(FLOAT)
            readers = list(value.uses())
            if node.op_type == "Cast":
                value.type = ir.TensorType(HALF)
                short = value
            else:
                narrow = ir.node("Cast", [value], {"to": int(HALF)}, name=f"{value.name}/round")
                graph.insert_after(node, narrow)
                short = narrow.outputs[0]
                short.type, short.shape = ir.TensorType(HALF), value.shape
            wide = ir.node("Cast", [short], {"to": int(FLOAT)}, name=f"{value.name}/rounded")
            made = short.producer()
            assert made is not None
            graph.insert_after(made, wide)
            wide.outputs[0].type, wide.outputs[0].shape = ir.TensorType(FLOAT), value.shape
            for reader, index in readers:
                reader.replace_input_with(index, wide.outputs[0])
            rounded += 1
    return rounded


def rounded_graph(graph: Graph, out_dir: Path) -> Graph:
    """Write ``rounded-<precision>.onnx``, what a typed graph computes on a GPU, for ONNX Runtime's CPU provider."""
    model = ir.load(graph.path)
    round_explicitly(model)
    path = out_dir / f"rounded-{graph.precision}.onnx"
    write_model(model, path)
    return Graph(path=path, stage="lowered", precision=graph.precision)
