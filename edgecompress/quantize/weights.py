"""Weight-only quantization of linear layers in blocks, and int8 embedding tables."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgecompress.quantize.layers import DOMAIN, Embedding, Linear, constant, replace_linear
from edgecompress.quantize.numerics import blockwise, per_row_int8


def quantize_weights(model: ir.Model, linears: Sequence[Linear], *, bits: int, block_size: int) -> int:
    """Replace layers by ``edgecompress::BlockLinear``; return how many. Activations stay float32.

    Inputs: x, uint8 weight [N, blocks, block * bits / 8], float32 scales [N, blocks], float32 bias [N].
    """
    for linear in linears:
        weight = linear.weight_array()
        packed, scales = blockwise(weight, bits, block_size)
        inputs = [
            linear.x,
            constant(model.graph, f"{linear.name}.weight_int{bits}", packed),
            constant(model.graph, f"{linear.name}.weight_scale", scales),
            constant(model.graph, f"{linear.name}.bias", linear.bias_array()),
        ]
        k, n = weight.shape
        attributes = {"bits": bits, "block_size": block_size, "K": k, "N": n}
        replace_linear(model.graph, linear, inputs, "BlockLinear", attributes)
    model.opset_imports[DOMAIN] = 1
    return len(linears)


def quantize_embeddings(model: ir.Model, embeddings: Sequence[Embedding]) -> int:
    """Replace lookups by ``edgecompress::QuantizedEmbedding`` (int8 [V, H], float32 [V, 1], ids); return how many."""
    for embedding in embeddings:
        assert embedding.table.const_value is not None
        table, scale = per_row_int8(embedding.table.const_value.numpy())
        inputs = [
            constant(model.graph, f"{embedding.table.name}.int8", table),
            constant(model.graph, f"{embedding.table.name}.scale", scale),
            embedding.ids,
        ]
        node = ir.node("QuantizedEmbedding", inputs, domain=DOMAIN, name=f"{embedding.name}/QuantizedEmbedding")
        out, old = node.outputs[0], embedding.gather.outputs[0]
        out.type, out.shape = old.type, old.shape
        model.graph.insert_before(embedding.gather, node)
        name = old.name
        ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
        model.graph.remove(embedding.gather, safe=True)
        out.name = name
    model.opset_imports[DOMAIN] = 1
    return len(embeddings)
