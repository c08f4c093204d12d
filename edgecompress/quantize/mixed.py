"""Mixed bits: measures each weight of a decoder alone at 4 bits, and gives 8 bits to the most costly ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.graph.blocks import BlockFormat, Blocks
from edgecompress.graph.linears import Embedding, Linear, find_embeddings, find_linears
from edgecompress.quantize.head_and_tables import find_head, quantize_every_weight
from edgecompress.quantize.scheme import Quantization
from edgecompress.quantize.sensitivity import BitAllocation, SingleWeightCost, choose_raised
from edgecompress.quantize.weights import round_linear, round_table, tied_to
from edgecompress.types.arrays import Batches, FloatArray
from edgecompress.types.recipe import QuantizeRecipe
from edgecompress.types.report import ALONE_KEY


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A unit that gets 4 or 8 bits: a layer, a table, or a head and a table that share one tensor."""

    linear: Linear | None
    table: Embedding | None

    @property
    def name(self) -> str:
        one = self.linear or self.table
        assert one is not None
        return one.name

    @property
    def names(self) -> list[str]:
        """Names of the initializers."""
        values = [self.linear and self.linear.weight, self.table and self.table.table]
        return [value.name for value in values if value is not None and value.name is not None]

    def round(self, form: BlockFormat, method: str, hessians: Mapping[str, FloatArray] | None) -> Blocks | None:
        """Quantize the weight; None for a table that cannot be stored in blocks."""
        if self.table is not None:
            return round_table(self.table, form, method)
        assert self.linear is not None
        return round_linear(self.linear, form, method, hessians)

    def initializers(self, blocks: Blocks) -> dict[str, FloatArray]:
        """Name -> the float weight that ``blocks`` represents."""
        arrays = [] if self.linear is None else [blocks.dequantize()]
        return dict(zip(self.names, arrays if self.table is None else [*arrays, blocks.rows()], strict=True))


def quantize_to_mixed_blocks(job: Quantization) -> None:
    """The scheme: blocks of 4 bits, and of 8 for the most costly weights. The costs are stored in the graph."""
    recipe = job.recipe.quantize
    floats = job.float_graph()
    hessians = job.hessians(floats) if recipe.method == "gptq" else None
    allocation = mix(floats.model, recipe, job.probes, hessians)
    costs = {name: float(f"{kl:.3g}") for name, kl in allocation.costs.items()}
    job.model.metadata_props[ALONE_KEY] = json.dumps(costs)
    quantize_every_weight(
        job.model, job.linears, recipe, bits=4, hessians=hessians, allocation=allocation, limits=job.limits
    )


def mix(
    runnable: ir.Model, recipe: QuantizeRecipe, texts: Batches, hessians: Mapping[str, FloatArray] | None = None
) -> BitAllocation:
    """Choose the bits of every weight with the float graph ``runnable``, which must run here and is not changed.

    ``texts`` gives the few texts that are run for every weight; method ``gptq`` needs ``hessians``. The mean,
    ``recipe.mean_bits``, is over all weights that can have either width. It excludes a head or table whose bits the
    recipe gives, and tables that are not stored in blocks.
    """
    form = BlockFormat(bits=4, block_size=recipe.block_size, symmetric=recipe.symmetric)
    choices = _choices(runnable, recipe)
    cost = SingleWeightCost(runnable, [name for choice in choices for name in choice.names], texts)
    costs: dict[str, float] = {}
    elements: dict[str, int] = {}
    kept: dict[str, Blocks] = {}
    for choice in choices:
        blocks = choice.round(form, recipe.method, hessians)
        if blocks is None:
            continue
        costs[choice.name] = cost.measure(choice.initializers(blocks))
        elements[choice.name] = blocks.width * len(blocks.scales)
        if choice.table is None:
            kept[choice.name] = blocks
    raised = choose_raised(costs, elements, recipe.mean_bits)
    tables = {c.table.name for c in choices if c.table is not None and c.name in raised}
    return BitAllocation(
        raised=raised | tables, costs=costs, blocks={name: b for name, b in kept.items() if name not in raised}
    )


def _choices(model: ir.Model, recipe: QuantizeRecipe) -> list[_Choice]:
    """In graph order, in which the Hessians are streamed, with the tables last."""
    linears = find_linears(model)
    head = find_head(model, linears)
    tables = find_embeddings(model) if recipe.quantize_embeddings and not recipe.embedding_bits else []
    free = [linear for linear in linears if linear is not head or not recipe.head_bits]
    twin = next((table for table in tables if head in free and head is not None and tied_to(table, head)), None)
    return [
        *(_Choice(linear=linear, table=twin if linear is head else None) for linear in free),
        *(_Choice(linear=None, table=table) for table in tables if table is not twin),
    ]
