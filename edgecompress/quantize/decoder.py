"""Which weights of a decoder go into which blocks: its layers, its head and its embedding table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.quantize.experts import quantize_experts
from edgecompress.quantize.layers import Linear, find_embeddings, find_linears
from edgecompress.quantize.numerics import Float
from edgecompress.quantize.weights import quantize_embedding_blocks, quantize_embeddings, quantize_weights, tied_to
from edgecompress.types.recipe import QuantizeRecipe

# What may stand between the head and the logits: soft-capping (gemma 2), a scale (granite), a cut of the padding.
_BEHIND_THE_HEAD = ("Div", "Mul", "Tanh", "Cast", "Reshape", "Slice", "Identity")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    layers: int
    head: str | None  # name of the layer that was taken for the head
    tables: int
    tied: bool  # the table and the head are one tensor


def quantize_decoder(
    model: ir.Model,
    recipe: QuantizeRecipe,
    *,
    bits: int,
    hessians: Mapping[str, Float] | None = None,
    only: Callable[[Linear], bool] = lambda _: True,
) -> Quantized:
    """Quantize the weights of a text-generation graph in place.

    The head and the table have bits of their own in the recipe. Where the head is the table's transpose and both have
    the same bits, one tensor serves both; with different bits each has its own.
    """
    linears = [linear for linear in find_linears(model) if only(linear)]
    head = find_head(model, linears)
    head_bits = recipe.head_bits or bits
    table_bits = recipe.embedding_bits or bits
    tables = find_embeddings(model) if recipe.quantize_embeddings else []
    shared = None
    for table in tables:
        tied = head if head is not None and table_bits == head_bits and tied_to(table, head) else None
        done = quantize_embedding_blocks(
            model,
            table,
            bits=table_bits,
            block_size=recipe.block_size,
            method="hqq" if recipe.method == "hqq" else "rtn",  # a lookup has no Hessian: its input is one row
            symmetric=recipe.symmetric,
            tied=tied,
            accuracy_level=recipe.accuracy_level,
        )
        if not done:
            quantize_embeddings(model, [table])
        elif tied is not None:
            shared = tied
    for group, group_bits in ((_without(linears, head), bits), (_just(head, shared), head_bits)):
        quantize_weights(
            model,
            group,
            bits=group_bits,
            block_size=recipe.block_size,
            method=recipe.method,
            symmetric=recipe.symmetric,
            accuracy_level=recipe.accuracy_level,
            hessians=hessians,
        )
    quantize_experts(model, recipe, bits=bits)
    return Quantized(layers=len(linears), head=head.name if head else None, tables=len(tables), tied=shared is not None)


def _without(linears: Sequence[Linear], head: Linear | None) -> list[Linear]:
    return [linear for linear in linears if linear is not head]


def _just(head: Linear | None, done: Linear | None) -> list[Linear]:
    return [head] if head is not None and head is not done else []


def find_head(model: ir.Model, linears: Sequence[Linear]) -> Linear | None:
    """The layer that makes the logits, which are the graph's first output."""
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
