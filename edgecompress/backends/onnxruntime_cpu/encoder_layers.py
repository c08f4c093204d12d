"""Finds the part of a compiled int8 graph that the encoder kernels support: a chain of post-LayerNorm GELU layers."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_MICROSOFT = "com.microsoft"
_ELEMENTWISE = ("Add", "Mul", "Cast", "LayerNormalization", "Identity")


class NotFound(Exception):
    """The graph is not such a chain; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """y = (x * smooth) W * scales + bias, with x quantized at run time."""

    x: ir.Value
    reader: ir.Node  # the node that reads x
    smooth: ir.Value | None
    weights: npt.NDArray[np.int8]  # [K, N]
    scales: npt.NDArray[np.float32]  # [N]
    bias: npt.NDArray[np.float32]  # [N]
    name: str


@dataclass(frozen=True, kw_only=True)
class Norm:
    """LayerNormalization(added), where ``added`` is a linear layer's output plus the residual."""

    added: ir.Node
    gamma: ir.Value
    beta: ir.Value
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its input, its parts and its output."""

    x: ir.Value
    qkv: tuple[Linear, Linear, Linear]
    heads: int
    scale: float
    mask: ir.Value
    out: Linear
    norm1: Norm
    up: Linear
    down: Linear
    norm2: Norm
    y: ir.Value


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All layers of an encoder, and its embedding tables."""

    layers: tuple[Layer, ...]
    mask: ir.Value  # the graph's input, int64 [B, T]
    lookups: tuple[ir.Node, ...]  # Gather nodes of [B, T] or [1, T] indices
    between: tuple[ir.Node, ...]  # nodes from the lookups to the first layer

    @property
    def hidden(self) -> int:
        return int(self.layers[0].out.weights.shape[1])

    @property
    def feed_forward(self) -> int:
        return int(self.layers[0].up.weights.shape[1])

    @property
    def heads(self) -> int:
        return self.layers[0].heads

    @cached_property
    def weight_bits(self) -> int:
        """7 if all weights are from -63 to 63, as quantized for x86 without VNNI; else 8."""
        parts = [part for layer in self.layers for part in (*layer.qkv, layer.out, layer.up, layer.down)]
        return 7 if all(np.abs(part.weights.astype(np.int16)).max() <= 63 for part in parts) else 8


def find_chain(model: ir.Model) -> Chain:
    """Raises NotFound, with a message for the report."""
    layers = _chained([layer for node in model.graph if (layer := _layer_ending_at(node)) is not None])
    if not layers:
        raise NotFound("it has no BERT-style layer: int8 attention, LayerNorm, GELU")
    count = sum(_attention(node) is not None for node in model.graph)
    if len(layers) != count:
        raise NotFound(f"{count - len(layers)} of its {count} layers have another structure")
    first = layers[0]
    sizes = {(layer.heads, layer.scale, layer.out.weights.shape, layer.up.weights.shape) for layer in layers}
    if len(sizes) > 1:
        raise NotFound("its layers differ in size")
    hidden = first.out.weights.shape[1]
    if hidden % first.heads or hidden // first.heads % 16 or first.up.weights.shape[1] % 16:
        raise NotFound("its head size or its feed-forward size is not a multiple of 16")
    if hidden // first.heads > 256:
        raise NotFound("its head size is larger than 256")
    if {layer.mask for layer in layers} != {first.mask}:
        raise NotFound("its layers have different masks")
    lookups, between = _embedding(first.x)
    inside = {*lookups, *between, *(linear.reader for linear in first.qkv), first.norm1.added}
    if not all(_read_only_by(value, inside) for node in (*lookups, *between) for value in node.outputs):
        raise NotFound("its embeddings are used outside its layers")
    return Chain(layers=tuple(layers), mask=_mask_input(model, first.mask), lookups=lookups, between=between)


def _chained(layers: list[Layer]) -> list[Layer]:
    """Order the layers so that each one's output is only the next one's input; [] if that is impossible."""
    for before, after in itertools.pairwise(layers):
        if after.x is not before.y:
            return []
    whole = all(
        _read_only_by(layer.x, {*(linear.reader for linear in layer.qkv), layer.norm1.added})
        and _read_only_by(layer.up.x, {layer.up.reader, layer.norm2.added})
        and _read_only_by(layer.out.x, {layer.out.reader})
        and _read_only_by(layer.down.x, {layer.down.reader})
        for layer in layers
    )
    return layers if whole else []


def _read_only_by(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    return {node for node, _ in value.uses()} <= set(readers) and not value.is_graph_output()


def _layer_ending_at(node: ir.Node) -> Layer | None:
    """The layer that ends with this LayerNormalization, or None."""
    second = _norm_of_sum(node)
    if second is None:
        return None
    norm2, down, middle = second
    gelu = down.x.producer()
    if gelu is None or gelu.op_type not in ("Gelu", "FastGelu") or _approximates(gelu):
        return None
    up = linear_of(gelu.inputs[0])
    before = middle.producer()
    first = _norm_of_sum(before) if before is not None else None
    if up is None or up.x is not middle or first is None:
        return None
    norm1, out, x = first
    producer = out.x.producer()
    found = _attention(producer) if producer is not None else None
    if found is None:
        return None
    inputs, mask, heads, scale = found
    qkv = tuple(linear for value in inputs if (linear := linear_of(value)) is not None and linear.x is x)
    if len(qkv) != 3 or len({id(linear.smooth) for linear in qkv}) != 1:
        return None
    return Layer(
        x=x, qkv=qkv, heads=heads, scale=scale, mask=mask, out=out, norm1=norm1, up=up, down=down, norm2=norm2,
        y=node.outputs[0],
    )  # fmt: skip


def _approximates(gelu: ir.Node) -> bool:
    form = gelu.attributes.get("approximate")
    return gelu.op_type != "Gelu" or (form is not None and form.as_string() != "none")


def _norm_of_sum(node: ir.Node) -> tuple[Norm, Linear, ir.Value] | None:
    """LayerNormalization(linear + residual) as (norm, linear, residual)."""
    if node.op_type != "LayerNormalization" or len(node.inputs) < 3 or node.attributes["axis"].as_int() != -1:
        return None
    added = node.inputs[0].producer() if node.inputs[0] is not None else None
    gamma, beta = node.inputs[1], node.inputs[2]
    if added is None or added.op_type != "Add" or gamma is None or beta is None:
        return None
    if gamma.const_value is None or beta.const_value is None:
        return None
    norm = Norm(added=added, gamma=gamma, beta=beta, epsilon=node.attributes["epsilon"].as_float())
    left, right = added.inputs
    for value, residual in ((left, right), (right, left)):
        linear = linear_of(value)
        if linear is not None and residual is not None:
            return norm, linear, residual
    return None


def linear_of(value: ir.Value | None) -> Linear | None:
    """The int8 linear layer that outputs ``value`` and quantizes its input at run time, or None."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != _MICROSOFT:
        return None
    inputs = [i if i is not None and i.name else None for i in node.inputs] + [None] * 7
    rounded = None
    if node.op_type == "DynamicQuantizeMatMul":
        x, weights, scales, zero, bias = inputs[:5]
    elif node.op_type == "MatMulIntegerToFloat":
        rounded = inputs[0].producer() if inputs[0] is not None else None
        if rounded is None or rounded.op_type != "DynamicQuantizeLinear":
            return None
        x, weights, scales, zero, bias = rounded.inputs[0], inputs[1], inputs[3], inputs[5], inputs[6]
    else:
        return None
    w, s, b, z = (_array(i) for i in (weights, scales, bias, zero))
    if x is None or w is None or s is None or w.dtype != np.int8 or w.ndim != 2 or s.size not in (1, w.shape[1]):
        return None
    if (bias is not None and b is None) or (zero is not None and (z is None or z.any())):
        return None
    smooth, reader = None, node if node.op_type == "DynamicQuantizeMatMul" else rounded
    before = x.producer()
    if before is not None and before.op_type == "Mul" and _array(before.inputs[1]) is not None:
        x, smooth, reader = before.inputs[0], before.inputs[1], before
    if x is None or reader is None:
        return None
    return Linear(
        x=x,
        reader=reader,
        smooth=smooth,
        weights=w,
        scales=np.broadcast_to(s.reshape(-1), w.shape[1:]).astype(np.float32),
        bias=np.zeros(w.shape[1], np.float32) if b is None else b.reshape(-1),
        name=(weights.name if weights is not None else "") or node.name or "",
    )


def _attention(node: ir.Node) -> tuple[list[ir.Value], ir.Value, int, float] | None:
    """([queries, keys, values], mask, heads, scale) of an attention with a padding mask only, or None."""
    branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if node.op_type != "If" or len(branches) != 2:
        return None
    inside = [list(branch) for branch in branches]
    if any(len(nodes) != 1 or nodes[0].op_type != "MultiHeadAttention" for nodes in inside):
        return None
    masked, whole = sorted((nodes[0] for nodes in inside), key=lambda n: -len(n.inputs))
    inputs = list(masked.inputs[:3])
    others = [i for i in masked.inputs[3:] if i is not None]
    if inputs != list(whole.inputs[:3]) or len(others) != 1 or len(masked.inputs) < 5 or masked.inputs[4] is None:
        return None
    unidirectional = masked.attributes.get("unidirectional")
    if (unidirectional is not None and unidirectional.as_int()) or any(i is None for i in inputs):
        return None
    heads, scale = masked.attributes["num_heads"].as_int(), masked.attributes.get("scale")
    if scale is None or scale.as_float() == 0:
        return None
    return [i for i in inputs if i is not None], masked.inputs[4], heads, scale.as_float()


def _mask_input(model: ir.Model, mask: ir.Value) -> ir.Value:
    producer = mask.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else mask
    if source not in model.graph.inputs or source is None or source.dtype != ir.DataType.INT64:
        raise NotFound("its mask is not the graph's padding mask")
    return source


def _embedding(x: ir.Value) -> tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]]:
    """The lookups that ``x`` is computed from, and the nodes between, which work on each token separately."""
    lookups: list[ir.Node] = []
    between: list[ir.Node] = []
    waiting = [x]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in lookups or node in between:
            continue
        if (
            node.op_type == "Gather"
            and not _axis(node)
            and _array(node.inputs[0]) is not None
            and _indices_rank(node) == 2
        ):
            lookups.append(node)
        elif node.op_type in _ELEMENTWISE and _alike(node):
            between.append(node)
            waiting += [i for i in node.inputs if i is not None]
        else:
            raise NotFound(f"its embeddings pass through {node.op_type}")
    if not lookups:
        raise NotFound("its input is not a sum of embeddings")
    return tuple(lookups), tuple(between)


def _alike(node: ir.Node) -> bool:
    """Whether its constants have only the last dimension, so that they work on packed rows too."""
    arrays = [a for i in node.inputs if (a := _array(i)) is not None]
    return all(a.ndim <= 1 for a in arrays)


def _axis(gather: ir.Node) -> int:
    axis = gather.attributes.get("axis")
    return axis.as_int() if axis is not None else 0


def _indices_rank(node: ir.Node) -> int:
    indices = node.inputs[1]
    return len(indices.shape) if indices is not None and indices.shape is not None else 0


def _array(value: ir.Value | None) -> Any:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None
