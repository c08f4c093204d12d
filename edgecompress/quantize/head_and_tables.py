"""Quantizes all weights of a decoder: layers, head, embedding tables and experts, each with its own bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import Linear, find_embeddings
from edgecompress.quantize.experts import quantize_experts
from edgecompress.quantize.sensitivity import UNIFORM, BitAllocation
from edgecompress.quantize.weights import (
    quantize_embedding_blocks,
    quantize_embeddings,
    quantize_weights,
    round_table,
    tied_to,
)
from edgecompress.types.arrays import FloatArray
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits
from edgecompress.types.recipe import QuantizeRecipe

# Ops allowed between the head and the logits: soft-capping (gemma 2), a scale (granite), cutting off padding.
_BEHIND_THE_HEAD = ("Div", "Mul", "Tanh", "Cast", "Reshape", "Slice", "Identity")


@dataclass(frozen=True, kw_only=True)
class QuantizedWeights:
    layers: int
    head: str | None  # name of the head's layer
    tables: int
    tied: bool  # the table and the head are one tensor


def quantize_every_weight(
    model: ir.Model,
    linears: Sequence[Linear],
    recipe: QuantizeRecipe,
    *,
    bits: int,
    hessians: Mapping[str, FloatArray] | None = None,
    allocation: BitAllocation = UNIFORM,
    limits: WeightLimits = DEFAULT_LIMITS,
) -> QuantizedWeights:
    """Quantize a graph's layers, its head, its embedding tables and its experts to blocks in place.

    The recipe has separate bits for the head and the table. If the head is the table's transpose and both have the same
    bits, they share one tensor. ``allocation`` raises some weights to 8 bits; these are never rounded by ``gptq``,
    whose gain at 8 bits is invisible beside the errors of the 4-bit weights.
    """
    head = find_head(model, linears)
    head_bits = recipe.head_bits or (8 if head is not None and head.name in allocation.raised else bits)
    tables = find_embeddings(model) if recipe.quantize_embeddings else []
    shared = None
    for table in tables:
        if limits.table_rows:
            quantize_embeddings(model, [table], limits=limits)
            continue
        table_bits = recipe.embedding_bits or (8 if table.name in allocation.raised else bits)
        tied = head if head is not None and table_bits == head_bits and tied_to(table, head) else None
        blocks = round_table(table, _form(recipe, table_bits, limits), recipe.method)
        if blocks is None:
            quantize_embeddings(model, [table], limits=limits)
            continue
        quantize_embedding_blocks(model, table, blocks, tied=tied, accuracy_level=recipe.first_accuracy_level)
        shared = tied or shared
    for linear in [*_except_head(linears, head), *_head_unless_done(head, shared)]:
        raised = linear.name in allocation.raised
        width = head_bits if linear is head else 8 if raised else bits
        by_columns = limits.whole_columns and width == 8
        quantize_weights(
            model,
            [linear],
            bits=width,
            block_size=recipe.block_size,
            method="rtn" if (raised or by_columns) and recipe.method == "gptq" else recipe.method,
            symmetric=recipe.symmetric,
            accuracy_level=recipe.first_accuracy_level,
            hessians=hessians,
            ready=allocation.blocks,
            limits=limits,
        )
    quantize_experts(model, recipe, bits=bits, limits=limits)
    return QuantizedWeights(
        layers=len(linears), head=head.name if head else None, tables=len(tables), tied=shared is not None
    )


def _form(recipe: QuantizeRecipe, bits: int, limits: WeightLimits) -> BlockFormat:
    return BlockFormat(
        bits=bits,
        block_size=recipe.block_size,
        symmetric=recipe.symmetric,
        positive_scales=limits.positive_scales,
    )


def _except_head(linears: Sequence[Linear], head: Linear | None) -> list[Linear]:
    return [linear for linear in linears if linear is not head]


def _head_unless_done(head: Linear | None, done: Linear | None) -> list[Linear]:
    return [head] if head is not None and head is not done else []


def find_head(model: ir.Model, linears: Sequence[Linear]) -> Linear | None:
    """The layer that computes the logits, the graph's first output; None if it is not found."""
    by_output = {linear.output: linear for linear in linears}
    value: ir.Value | None = model.graph.outputs[0]
    while value is not None:
        if value in by_output:
            return by_output[value]
        node = value.producer()
        if node is None or node.op_type not in _BEHIND_THE_HEAD:
            return None
        value = next((i for i in node.inputs if i is not None and i.producer() is not None), None)
    return None
