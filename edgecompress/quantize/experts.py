"""Quantizes the experts of a mixture in blocks, and finds its routers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_linears
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.weights import SMALLEST_BLOCK, block_that_divides, free_if_unused
from edgecompress.types.limits import DEFAULT_LIMITS, WeightLimits
from edgecompress.types.recipe import QuantizeRecipe


def find_experts(model: ir.Model) -> list[ir.Node]:
    """Every ``edgecompress::Experts`` whose weights are float (see ``edgecompress/capture/experts.py``)."""
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == "Experts"]


def routers(model: ir.Model) -> set[str]:
    """Names of the linear layers that decide which experts a token goes to.

    They stay float: they are 0.1 % of the weights, and a quantized router sends tokens to other experts.
    """
    by_output = {linear.output: linear for linear in find_linears(model)}
    found = set()
    for node in find_experts(model):
        waiting = list(node.inputs[1:3])
        seen = {node.inputs[0]}
        while waiting:
            value = waiting.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            if value in by_output:
                found.add(by_output[value].name)
                continue
            producer = value.producer()
            if producer is not None and not producer.domain:
                waiting.extend(producer.inputs)
    return found


def quantize_experts(
    model: ir.Model, recipe: QuantizeRecipe, *, bits: int, limits: WeightLimits = DEFAULT_LIMITS
) -> int:
    """Replace every Experts op by ``edgecompress::BlockExperts`` in place, layer by layer; return how many.

    Inputs of the op: x, chosen, weights as before, then for gate_up and for down: uint8 weight [E, N, K * bits / 8],
    float32 scales [E, N, blocks], uint8 zero points [E, N, ceil(blocks * bits / 8)] and float32 bias [E, N]; the last
    two are optional.

    Both products use one block size: the largest power of two that divides H and I and is at most the recipe's. If it
    is below 16, the experts stay float. Method ``gptq`` rounds to nearest here: it has no Hessian, because each expert
    sees different tokens.
    """
    done = 0
    for node in find_experts(model):
        gate_up, down, *biases = node.inputs[3:]
        assert gate_up is not None
        assert down is not None
        block = block_that_divides(math.gcd(_width(gate_up), _width(down)), recipe.block_size)
        if block < SMALLEST_BLOCK:
            continue
        form = BlockFormat(
            bits=bits, block_size=block, symmetric=recipe.symmetric, positive_scales=limits.positive_scales
        )
        method = "hqq" if recipe.method == "hqq" else "rtn"
        inputs = list(node.inputs[:3])
        for weight, bias in zip((gate_up, down), biases or (None, None), strict=True):
            inputs += [*_blocks(model.graph, weight, form, method), bias]
        while inputs[-1] is None:
            inputs.pop()
        _replace(
            model.graph,
            node,
            inputs,
            {"bits": bits, "block_size": block, "accuracy_level": recipe.first_accuracy_level},
        )
        for weight in (gate_up, down):
            free_if_unused(model.graph, weight)
        done += 1
    return done


def _width(weight: ir.Value) -> int:
    """K of [E, N, K], known without reading the weight."""
    assert weight.const_value is not None
    return int(weight.const_value.shape[2])  # type: ignore[arg-type]


def _blocks(graph: ir.Graph, weight: ir.Value, form: BlockFormat, method: str) -> list[ir.Value | None]:
    """Packed weight, scales and zero points."""
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    experts, rows, width = array.shape
    blocks = quantize_blocks(array.reshape(-1, width).T, form, method)
    del array
    name = (weight.name or "experts").removesuffix(".arranged")
    zeros = blocks.zero_points
    return [
        constant(graph, f"{name}_int{form.bits}", blocks.packed.reshape(experts, rows, -1)),
        constant(graph, f"{name}_scale", blocks.scales.reshape(experts, rows, -1)),
        constant(graph, f"{name}_zero_point", zeros.reshape(experts, rows, -1)) if zeros is not None else None,
    ]


def _replace(graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None], attributes: Mapping[str, int]) -> None:
    name = (node.name or "").rpartition("/")[0]
    made = ir.node("BlockExperts", inputs, domain=DOMAIN, name=f"{name}/BlockExperts", attributes=dict(attributes))
    made.attributes.update({key: value for key, value in node.attributes.items() if key not in made.attributes})
    out, old = made.outputs[0], node.outputs[0]
    out.type, out.shape = old.type, old.shape
    graph.insert_before(node, made)
    label = old.name
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    out.name = label
