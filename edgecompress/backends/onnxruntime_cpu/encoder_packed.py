"""Rewrites an encoder's graph to packed rows: tokens are packed once at the start, unpacked or summed at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.backends.onnxruntime_cpu.encoder_layers import Chain, Layer, Linear, Norm
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant


def pack_encoder(model: ir.Model, chain: Chain) -> None:
    """Replace the chain's layers by the packed encoder, in place."""
    graph = model.graph
    first, last = chain.layers[0], chain.layers[-1]
    anchor = chain.lookups[-1]
    for node in graph:
        if node in chain.lookups:
            anchor = node
            break
    packed = ir.node("PackTokens", [chain.mask], domain=DOMAIN, num_outputs=2, name="packed/PackTokens")
    graph.insert_before(anchor, packed)
    rows, starts = packed.outputs
    _name(rows, "packed/rows", ir.DataType.INT64, ["tokens"])
    _name(starts, "packed/starts", ir.DataType.INT64, ["starts"])
    _pack_lookups(graph, chain, anchor, rows)
    for node in (*chain.lookups, *chain.between):
        for value in node.outputs:
            value.shape = None

    end = last.y.producer()
    assert end is not None
    sizes = {
        "hidden": chain.hidden, "num_heads": chain.heads, "feed_forward": chain.feed_forward,
        "weight_bits": chain.weight_bits,
    }  # fmt: skip
    x, projections = first.x, _projections(graph, end, chain, sizes)
    for index, layer in enumerate(chain.layers):
        following = chain.layers[index + 1] if layer is not last else None
        new = _layer(graph, layer, following, [x, projections, starts], sizes)
        graph.insert_before(end, new)
        x, projections = new.outputs
        _name(x, f"packed/rows_{index + 1}", ir.DataType.FLOAT, ["tokens", chain.hidden])
        _name(projections, f"packed/projections_{index + 1}", ir.DataType.UINT8, ["bytes"])
    _give_out(graph, last.y, x, rows, starts, chain)
    model.opset_imports[DOMAIN] = 1
    _remove_unused(graph)


def _name(value: ir.Value, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)


def _pack_lookups(graph: ir.Graph, chain: Chain, anchor: ir.Node, rows: ir.Value) -> None:
    """Make each lookup read packed indices, without padding, in one row."""
    flat = constant(graph, "packed/flat", np.array([-1], dtype=np.int64))
    made: dict[ir.Value, ir.Value] = {}
    whole: ir.Value | None = None
    for lookup in [node for node in graph if node in chain.lookups]:
        indices = lookup.inputs[1]
        assert indices is not None
        assert indices.shape is not None
        if indices not in made:
            source = indices
            label = f"packed/{indices.name}"
            if indices.shape[0] == 1:  # positions shared by all sequences
                if whole is None:
                    shape = ir.node("Shape", [chain.mask], name="packed/Shape")
                    graph.insert_before(anchor, shape)
                    whole = shape.outputs[0]
                    _name(whole, "packed/shape", ir.DataType.INT64, [2])
                spread = ir.node("Expand", [indices, whole], name=f"{label}/Expand")
                graph.insert_before(lookup, spread)
                source = spread.outputs[0]
                _name(source, f"{label}/expanded", ir.DataType.INT64, ["batch", "sequence"])
            reshape = ir.node("Reshape", [source, flat], name=f"{label}/Reshape")
            graph.insert_before(lookup, reshape)
            _name(reshape.outputs[0], f"{label}/flat", ir.DataType.INT64, ["places"])
            pick = ir.node("Gather", [reshape.outputs[0], rows], name=f"{label}/Gather")
            graph.insert_before(lookup, pick)
            _name(pick.outputs[0], label, ir.DataType.INT64, ["tokens"])
            made[indices] = pick.outputs[0]
        lookup.replace_input_with(1, made[indices])


def _linear(graph: ir.Graph, parts: Sequence[Linear]) -> list[ir.Value | None]:
    """Weights, scales, biases and smoothing of these layers, concatenated as the kernels expect."""
    from edgecompress_kernels.cpu.encoder_packing import pack_columns, pack_panels

    weights = np.concatenate([part.weights for part in parts], axis=1)
    scales = np.concatenate([part.scales for part in parts])
    bias = np.concatenate([part.bias for part in parts])
    name = parts[0].name
    return [
        constant(graph, f"{name}.panels", pack_panels(weights)),
        constant(graph, f"{name}.columns", pack_columns(weights, scales, bias)),
        parts[0].smooth,
    ]


def _projections(graph: ir.Graph, end: ir.Node, chain: Chain, sizes: dict[str, int]) -> ir.Value:
    first = chain.layers[0]
    node = ir.node(
        "EncoderProjections",
        _trimmed([first.x, *_linear(graph, first.qkv)]),
        attributes={**sizes, "scale": first.scale, "epsilon1": 0.0, "epsilon2": 0.0},
        domain=DOMAIN,
        name="packed/EncoderProjections",
    )
    graph.insert_before(end, node)
    _name(node.outputs[0], "packed/projections_0", ir.DataType.UINT8, ["bytes"])
    return node.outputs[0]


def _layer(
    graph: ir.Graph, layer: Layer, following: Layer | None, data: list[ir.Value], sizes: dict[str, int]
) -> ir.Node:
    inputs: list[ir.Value | None] = [*data]
    for linear in (layer.out, layer.up, layer.down):
        inputs += _linear(graph, [linear])
    inputs += [value for norm in (layer.norm1, layer.norm2) for value in _norm(norm)]
    if following is not None:
        inputs += _linear(graph, following.qkv)
    scale = following.scale if following is not None else layer.scale
    numbers: dict[str, Any] = {"scale": scale, "epsilon1": layer.norm1.epsilon, "epsilon2": layer.norm2.epsilon}
    name = layer.out.name.split("/", 1)[0]
    return ir.node(
        "EncoderLayer", _trimmed(inputs), attributes={**sizes, **numbers}, domain=DOMAIN, num_outputs=2,
        name=f"packed/{name}/EncoderLayer",
    )  # fmt: skip


def _norm(norm: Norm) -> list[ir.Value]:
    return [norm.gamma, norm.beta]


def _trimmed(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    while inputs[-1] is None:
        inputs.pop()
    return inputs


def _give_out(graph: ir.Graph, old: ir.Value, x: ir.Value, rows: ir.Value, starts: ir.Value, chain: Chain) -> None:
    """Feed a mean over the mask with the sum of each sequence's rows, and any other reader with [B, T, H]."""
    for node, _ in list(old.uses()):
        if not _is_sum_over_mask(node, old, chain.mask):
            continue
        total = ir.node("SumTokens", [x, starts], domain=DOMAIN, name="packed/SumTokens")
        axis = constant(graph, "packed/axis_1", np.array([1], dtype=np.int64))
        apart = ir.node("Unsqueeze", [total.outputs[0], axis], name="packed/SumTokens/Unsqueeze")
        graph.insert_before(node, [total, apart])
        _name(total.outputs[0], "packed/sums", ir.DataType.FLOAT, ["batch", chain.hidden])
        _take_over(graph, node.outputs[0], apart.outputs[0])
        graph.remove(node, safe=True)
    if old.uses() or old.is_graph_output():
        unpack = ir.node("UnpackTokens", [x, rows, chain.mask], domain=DOMAIN, name="packed/UnpackTokens")
        end = old.producer()
        assert end is not None
        graph.insert_before(end, unpack)
        _take_over(graph, old, unpack.outputs[0])


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    name = old.name
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name, new.name = None, name


def _is_sum_over_mask(node: ir.Node, x: ir.Value, mask: ir.Value) -> bool:
    """FusedMatMul(mask [B, T, 1] as floats, x) over the tokens."""
    if node.op_type != "FusedMatMul" or len(node.inputs) != 2 or node.inputs[1] is not x:
        return False
    flags = {name: node.attributes[name].value for name in ("transA", "transB", "alpha")}
    value = node.inputs[0]
    cast = value.producer() if value is not None else None
    apart = cast.inputs[0].producer() if cast is not None and cast.op_type == "Cast" and cast.inputs[0] else None
    from_mask = apart is not None and apart.op_type == "Unsqueeze" and apart.inputs[0] is mask
    return flags == {"transA": 1, "transB": 0, "alpha": 1.0} and from_mask


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        for attribute in node.attributes.values():  # a branch's outer values count as uses
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph():
                    for index in range(len(inner.inputs)):
                        inner.replace_input_with(index, None)
        graph.remove(node, safe=True)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
        del graph.initializers[name]
