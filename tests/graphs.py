"""Graphs for tests, written as ONNX text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir


def graph_with_weights(text: str, weights: Mapping[str, np.ndarray]) -> ir.Model:
    """Read ONNX text whose weights are declared as inputs, and make them initializers."""
    model = ir.from_onnx_text(text)
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    return model
