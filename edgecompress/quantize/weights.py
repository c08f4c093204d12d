"""Weight-only quantization: linear layers and embedding tables in blocks, and int8 embedding tables by row.

A float weight is freed as soon as nothing reads it any more, so that a large model is never in memory twice; weights in
a file are read one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgecompress.graph.blocks import BlockFormat, Blocks
from edgecompress.graph.linears import Embedding, Linear, replace_linear
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.gptq import gptq
from edgecompress.quantize.numerics import per_row_int8
from edgecompress.types.arrays import FloatArray
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits

SMALLEST_BLOCK = 16  # that GatherBlockQuantized supports


def quantize_weights(
    model: ir.Model,
    linears: Sequence[Linear],
    *,
    bits: int,
    block_size: int,
    method: str = "rtn",
    symmetric: bool = True,
    accuracy_level: int = 4,
    hessians: Mapping[str, FloatArray] | None = None,
    ready: Mapping[str, Blocks] | None = None,
    limits: WeightLimits = DEFAULT_LIMITS,
) -> int:
    """Replace layers by ``edgecompress::BlockLinear`` in place, one by one; return how many. Inputs stay float32.

    Inputs of the op: x, uint8 weight [N, blocks, block * bits / 8], float32 scales [N, blocks] and, optionally, uint8
    zero points [N, ceil(blocks * bits / 8)] and float32 bias [N]. ``hessians`` maps the name of a layer's input to
    float32 [K, K]; method ``gptq`` needs it and reads one layer's Hessian at a time. ``ready`` maps layer names to
    blocks of this format that :func:`round_linear` has already computed.
    """
    form = BlockFormat(bits=bits, block_size=block_size, symmetric=symmetric, positive_scales=limits.positive_scales)
    for linear in linears:
        fitted = replace(form, block_size=fitting_block(linear.width, form, limits))
        blocks = (ready or {}).get(linear.name) or round_linear(linear, fitted, method, hessians)
        names = f"{linear.name}.weight"
        packed = constant(model.graph, f"{names}_int{bits}", blocks.packed)
        _replace(model.graph, linear, blocks, packed, names, accuracy_level)
    model.opset_imports[DOMAIN] = 1
    return len(linears)


def round_linear(linear: Linear, form: BlockFormat, method: str, hessians: Mapping[str, FloatArray] | None) -> Blocks:
    """Quantize the layer's weight [K, N] to blocks; the layer is not changed."""
    if method == "gptq":
        assert hessians is not None, "gptq needs the Hessian of every layer's input"
        return gptq(linear.weight_array(), hessians[linear.x.name or ""], form)
    return quantize_blocks(linear.weight_array(), form, method)


def round_table(embedding: Embedding, form: BlockFormat, method: str) -> Blocks | None:
    """Quantize the table [V, H] to blocks, laid out like a head's weight [H, V]; None if that is not possible.

    Blocks must fill a row, so the block size is the largest power of two that divides H and is at most the format's;
    None if it is below 16. ``gptq`` rounds to nearest here, because a lookup has no Hessian.
    """
    assert embedding.table.const_value is not None
    table = embedding.table.const_value.numpy()
    block = block_that_divides(table.shape[1], form.block_size)
    if block < SMALLEST_BLOCK:
        return None
    return quantize_blocks(table.T, replace(form, block_size=block), "hqq" if method == "hqq" else "rtn")


def _replace(
    graph: ir.Graph, linear: Linear, blocks: Blocks, packed: ir.Value, names: str, accuracy_level: int
) -> None:
    inputs: list[ir.Value | None] = [linear.x, packed, constant(graph, f"{names}_scale", blocks.scales), None, None]
    if blocks.zero_points is not None:
        inputs[3] = constant(graph, f"{names}_zero_point", blocks.zero_points)
    if linear.bias is not None:
        inputs[4] = linear.bias
    while inputs[-1] is None:
        inputs.pop()
    form = blocks.format
    attributes = {
        "bits": form.bits,
        "block_size": form.block_size,
        "K": blocks.width,
        "N": len(blocks.scales),
        "accuracy_level": accuracy_level,
    }
    replace_linear(graph, linear, inputs, "BlockLinear", attributes)
    free_if_unused(graph, linear.weight)


def free_if_unused(graph: ir.Graph, weight: ir.Value) -> None:
    """Remove an initializer and free its data, unless a node still reads it."""
    if weight.uses() or weight.is_graph_output() or weight.name is None:
        return
    graph.initializers.pop(weight.name, None)
    weight.const_value = None


def quantize_embeddings(
    model: ir.Model, embeddings: Sequence[Embedding], *, limits: WeightLimits = DEFAULT_LIMITS
) -> int:
    """Replace lookups by ``edgecompress::QuantizedEmbedding`` (int8 [V, H], float32 [V, 1], ids); return how many."""
    for embedding in embeddings:
        assert embedding.table.const_value is not None
        table, scale = per_row_int8(embedding.table.const_value.numpy(), half_scales=limits.half_scales)
        inputs = [
            constant(model.graph, f"{embedding.table.name}.int8", table),
            constant(model.graph, f"{embedding.table.name}.scale", scale),
            embedding.ids,
        ]
        _replace_lookup(model.graph, embedding, inputs, "QuantizedEmbedding", {})
    model.opset_imports[DOMAIN] = 1
    return len(embeddings)


def quantize_embedding_blocks(
    model: ir.Model, embedding: Embedding, blocks: Blocks, *, tied: Linear | None = None, accuracy_level: int = 4
) -> None:
    """Replace a lookup by ``edgecompress::BlockEmbedding`` in place, with the ``blocks`` of :func:`round_table`.

    Inputs of the op: uint8 table [V, blocks, block * bits / 8], ids, float32 scales [V, blocks] and, optionally, uint8
    zero points. A head ``tied`` to the table (its weight is the table's transpose) becomes a BlockLinear that reads the
    same tensors.
    """
    form, names = blocks.format, embedding.table.name or embedding.name
    packed = constant(model.graph, f"{names}_int{form.bits}", blocks.packed)
    inputs = [packed, embedding.ids, constant(model.graph, f"{names}_scale", blocks.scales)]
    if blocks.zero_points is not None:
        inputs.append(constant(model.graph, f"{names}_zero_point", blocks.zero_points))
    attributes = {"bits": form.bits, "block_size": form.block_size, "H": blocks.width}
    _replace_lookup(model.graph, embedding, inputs, "BlockEmbedding", attributes)
    if tied is not None:
        _replace(model.graph, tied, blocks, packed, names, accuracy_level)
    model.opset_imports[DOMAIN] = 1


def block_that_divides(width: int, block_size: int) -> int:
    """The largest power of two that divides ``width`` and is at most ``block_size``."""
    block = block_size
    while width % block:
        block //= 2
    return block


def fitting_block(width: int, form: BlockFormat, limits: WeightLimits) -> int:
    """The block size for a column of ``width`` weights: the format's, unless the limits need another.

    If the limits need several blocks per column, it also divides ``width`` and is short enough for that many.
    """
    if form.bits == 8:
        return width if limits.whole_columns else form.block_size
    if limits.least_blocks == 1:
        return form.block_size
    longest = 1 << (max(width // limits.least_blocks, 1).bit_length() - 1)
    return block_that_divides(width, min(form.block_size, longest))


def tied_to(embedding: Embedding, linear: Linear) -> bool:
    """Whether the layer's weight [H, V] equals the transposed table [V, H]."""
    table, weight = embedding.table.const_value, linear.weight.const_value
    if table is None or weight is None or tuple(table.shape) != tuple(weight.shape)[::-1]:
        return False
    rows, columns = table.numpy(), weight.numpy()
    step = 4096
    return all(
        np.array_equal(rows[start : start + step], columns[:, start : start + step].T)
        for start in range(0, len(rows), step)
    )


def _replace_lookup(
    graph: ir.Graph, embedding: Embedding, inputs: Sequence[ir.Value], op: str, attributes: Mapping[str, int]
) -> None:
    node = ir.node(op, list(inputs), attributes=dict(attributes), domain=DOMAIN, name=f"{embedding.name}/{op}")
    out, old = node.outputs[0], embedding.gather.outputs[0]
    out.type, out.shape = old.type, old.shape
    graph.insert_before(embedding.gather, node)
    name = old.name
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    graph.remove(embedding.gather, safe=True)
    out.name = name
    free_if_unused(graph, embedding.table)
