"""The weight-only schemes: blocks of 4 or 8 bits with float activations."""

from __future__ import annotations

from edgecompress.graph.linears import find_embeddings
from edgecompress.graph.ops import has_cached_attention
from edgecompress.quantize.head_and_tables import quantize_every_weight
from edgecompress.quantize.scheme import Quantization
from edgecompress.quantize.weights import quantize_embeddings, quantize_weights


def quantize_to_int4_blocks(job: Quantization) -> None:
    _quantize(job, bits=4)


def quantize_to_int8_blocks(job: Quantization) -> None:
    _quantize(job, bits=8)


def _quantize(job: Quantization, bits: int) -> None:
    recipe = job.recipe.quantize
    floats = job.float_graph() if recipe.method == "gptq" else None
    hessians = job.hessians(floats) if floats is not None else None
    if has_cached_attention(job.model):
        quantize_every_weight(job.model, job.linears, recipe, bits=bits, hessians=hessians, limits=job.limits)
        return
    quantize_weights(
        job.model,
        job.linears,
        bits=bits,
        block_size=recipe.block_size,
        method=recipe.method,
        symmetric=recipe.symmetric,
        accuracy_level=recipe.first_accuracy_level,
        hessians=hessians,
        limits=job.limits,
    )
    if recipe.quantize_embeddings:
        quantize_embeddings(job.model, find_embeddings(job.model), limits=job.limits)
