"""Checks the precision of an engine against the builder's description of its layers.

A successful build proves nothing: without a matching fusion, a builder can widen a weight and multiply in float16. So
each 8-bit or 4-bit product of the graph must appear in the engine with a constant of that type, and the engine's
weights must not be larger than the graph's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.errors import EngineError, WideProductsError

# Allowed growth of weights, as a share of the growth in the next wider float: builders pad some weights.
_GROWTH = 0.25
_E4M3 = ir.DataType.FLOAT8E4M3FN
_WIDER = {
    ir.DataType.INT4: 3.0,
    ir.DataType.INT8: 1.0,
    _E4M3: 1.0,
    ir.DataType.FLOAT16: 1.0,
}  # additional bytes per byte

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<rest>.*)$")
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCT = "gemm"  # multiplies in its input types; a fusion can widen its inputs first
_ENGINE_TYPES = {ir.DataType.INT8: "Int8", ir.DataType.INT4: "Int4", _E4M3: "FP8"}


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    dims: tuple[int, ...]  # -1: dynamic
    dtype: str  # the builder's name: "Half", "Float", "Int8", "Int4"

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight, not per-channel scales or a bias."""
        return sum(size > 1 for size in self.dims) > 1


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    name: str
    kind: str  # "gemm", "kgen", …
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    sources: tuple[str, ...]  # names of the graph's nodes in this layer


@dataclass(frozen=True, kw_only=True)
class Product:
    """A MatMul of the graph with a quantized weight."""

    name: str
    weight: str  # its type in the engine
    integer: bool  # both sides are int8 or float8, so the engine must multiply in that type


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """Parse lines that begin with "Name:" and have a layer type; skip other lines."""
    layers = []
    for line in text.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        inputs, _, rest = match["rest"].partition(", Constants: ")
        constants, _, rest = rest.partition(", Outputs: ")
        layers.append(
            EngineLayer(
                name=match["name"],
                kind=match["kind"],
                inputs=_tensors(inputs),
                constants=_tensors(constants),
                sources=tuple(_SOURCE.findall(rest)),
            )
        )
    return tuple(layers)


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(dims=tuple(int(d) for d in found["dims"].split(",") if d.strip()), dtype=found["dtype"])
        for found in _TENSOR.finditer(text)
    )


def quantized_products(model: ir.Model) -> tuple[Product, ...]:
    """Return every MatMul of a runtime value with a constant behind a DQ, as the engine must compute it.

    Products of constants only are folded when the engine is built.
    """
    products = []
    given = set(model.graph.inputs)
    for node in model.graph:
        if not given & set(node.inputs):
            continue
        given |= set(node.outputs)
        if node.op_type != "MatMul":
            continue
        sides = [value.producer() if value is not None else None for value in node.inputs]
        stored = [side.inputs[0] for side in sides if side is not None and side.op_type == "DequantizeLinear"]
        weights = [value for value in stored if value is not None and value.const_value is not None]
        if not weights:
            continue
        weight = weights[0].dtype
        assert weight in _ENGINE_TYPES
        # If float16 cannot represent the sums, the product is float32, behind its DQs.
        integer = len(stored) == 2 and node.outputs[0].dtype != ir.DataType.FLOAT
        products.append(Product(name=node.name or "", weight=_ENGINE_TYPES[weight], integer=integer))
    return tuple(products)


def most_bytes(model: ir.Model) -> tuple[int, int]:
    """Return the bytes of the graph's constants (int4: half a byte) and the maximum bytes of the engine's weights."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    stored = sum(tensor.nbytes for tensor in tensors)
    return stored, round(stored + _GROWTH * sum(_WIDER.get(tensor.dtype, 0.0) * tensor.nbytes for tensor in tensors))


def require_claimed(
    model: ir.Model, layers: Sequence[EngineLayer], weights_bytes: int, precision: str
) -> Mapping[str, int]:
    """Compare the engine with the graph; return type -> number of layers that multiply by a matrix of that type.

    Raises WideProductsError if a product is wider than in the graph, EngineError if the weights are too large.
    """
    products = quantized_products(model)
    wide = [product.name.removesuffix("/MatMul") for product in products if not _is_built(product, layers)]
    if wide:
        named = ", ".join(wide[:3]) + (", …" if len(wide) > 3 else "")
        raise WideProductsError(
            f"the engine computes {len(wide)} of {len(products)} products of the {precision} graph in a wider type: "
            f"{named}",
            hint="Use --precision fp16, or another version of the builder.",
            layers=tuple(wide),
            of=len(products),
        )
    stored, most = most_bytes(model)
    if weights_bytes > most:
        raise EngineError(
            f"the engine's weights take {weights_bytes:_} bytes, but only {stored:_} in the {precision} graph: the "
            "builder stored them in a wider type",
            hint="Use --precision fp16, or another version of the builder.",
        )
    counts: dict[str, int] = {}
    for layer in layers:
        for dtype in {tensor.dtype for tensor in layer.constants if tensor.is_matrix}:
            counts[dtype] = counts.get(dtype, 0) + 1
    return dict(sorted(counts.items()))


def _is_built(product: Product, layers: Sequence[EngineLayer]) -> bool:
    for layer in layers:
        if product.name not in layer.sources:
            continue
        weights = any(tensor.is_matrix and tensor.dtype == product.weight for tensor in layer.constants)
        integers = layer.kind == _PRODUCT and all(tensor.dtype == product.weight for tensor in layer.inputs)
        if weights and (integers or not product.integer):
            return True
    return False
