"""What an engine really computes in, read off the builder's own account of its layers.

An engine that built is no proof: where a builder finds no fusion it may keep a weight wide and multiply in float16. So
each product that the graph has in 8 or 4 bits must be found in the engine with a constant of that type, and the weights
together must be no larger than the graph stores them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.errors import EngineError, WideProductsError

# Weights may grow by this share of what they would grow by in the next wider float: builders pad some of them.
_GROWTH = 0.25
_E4M3 = ir.DataType.FLOAT8E4M3FN
_WIDER = {ir.DataType.INT4: 3.0, ir.DataType.INT8: 1.0, _E4M3: 1.0, ir.DataType.FLOAT16: 1.0}  # bytes more a byte

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: (?P<rest>.*)$")
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCT = "gemm"  # of types that it has a kernel for; a fusion may widen what it reads first
_ENGINE_TYPES = {ir.DataType.INT8: "Int8", ir.DataType.INT4: "Int4", _E4M3: "FP8"}


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    dims: tuple[int, ...]  # -1: varies
    dtype: str  # as the builder names it: "Half", "Float", "Int8", "Int4"

    @property
    def is_matrix(self) -> bool:
        """A weight, not a scale or bias a channel."""
        return sum(size > 1 for size in self.dims) > 1


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    name: str
    kind: str  # "gemm", "kgen", …
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    sources: tuple[str, ...]  # names of the graph's nodes that went into it


@dataclass(frozen=True, kw_only=True)
class Product:
    """A MatMul of the graph whose weight is stored in few bits."""

    name: str
    weight: str  # the type that the engine must have for it
    integer: bool  # both sides are 8 bits, int8 or float8, so that the engine must multiply them as such


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The lines that begin with "Name:" and have a layer type; the rest of the account is passed over."""
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
    """Every MatMul of something that was given with a constant behind a DQ, as the engine must compute it.

    What is made of constants alone is computed when the engine is built.
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
        # One whose sums float16 could not hold is multiplied in float32 behind its DQs.
        integer = len(stored) == 2 and node.outputs[0].dtype != ir.DataType.FLOAT
        products.append(Product(name=node.name or "", weight=_ENGINE_TYPES[weight], integer=integer))
    return tuple(products)


def most_bytes(model: ir.Model) -> tuple[int, int]:
    """What the constants of the graph take, 4 bits half a byte, and what the engine's weights may take at most."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    stored = sum(tensor.nbytes for tensor in tensors)
    return stored, round(stored + _GROWTH * sum(_WIDER.get(tensor.dtype, 0.0) * tensor.nbytes for tensor in tensors))


def require_claimed(
    model: ir.Model, layers: Sequence[EngineLayer], weights_bytes: int, precision: str
) -> Mapping[str, int]:
    """Hold the engine against the graph; return how many layers multiply by a matrix of each type.

    Raises WideProductsError if a product was built wider than the graph has it, EngineError if the weights are larger.
    """
    products = quantized_products(model)
    wide = [product.name.removesuffix("/MatMul") for product in products if not _is_built(product, layers)]
    if wide:
        named = ", ".join(wide[:3]) + (", …" if len(wide) > 3 else "")
        raise WideProductsError(
            f"the engine multiplies {len(wide)} of {len(products)} weights of the {precision} graph in more bits than "
            f"they have: {named}",
            hint="Use --precision fp16, or another version of the builder.",
            layers=tuple(wide),
            of=len(products),
        )
    stored, most = most_bytes(model)
    if weights_bytes > most:
        raise EngineError(
            f"the engine's weights take {weights_bytes:_} bytes and the {precision} graph has {stored:_}: they were "
            "stored in more bits",
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
