"""Lowers ``edgecompress::Gated`` to ONNX Runtime's own ops.

Its CPU provider has no kernel for the whole gate (1.32: none for ``SwiGLU``), so the gate becomes an activation and a
product. QuickGelu is ``x * sigmoid(alpha * x)``, which is SiLU for alpha 1.
"""

from __future__ import annotations

import onnx_ir as ir

from edgecompress.graph.ops import DOMAIN, MICROSOFT
from edgecompress.graph.rewrite import replace_node


def lower_gated(model: ir.Model) -> int:
    """Rewrite every Gated of ``model`` in place; return how many there were."""
    graph = model.graph
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "Gated"]
    for node in nodes:
        gate, up = node.inputs
        parent = (node.name or "graph/Gated").rpartition("/")[0]
        name = node.attributes["activation"].as_string()
        if name == "silu":
            activation = ir.node("QuickGelu", [gate], {"alpha": 1.0}, domain=MICROSOFT, name=f"{parent}/QuickGelu")
            model.opset_imports[MICROSOFT] = 1
        elif name == "relu":
            activation = ir.node("Relu", [gate], name=f"{parent}/Relu")
        else:
            kind = "tanh" if name == "gelu_tanh" else "none"
            activation = ir.node("Gelu", [gate], {"approximate": kind}, name=f"{parent}/Gelu")
        graph.insert_before(node, activation)
        activation.outputs[0].type, activation.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        replace_node(graph, node, ir.node("Mul", [activation.outputs[0], up], name=f"{parent}/Mul"))
    return len(nodes)
