"""The contents of an ONNX file for a manifest and a report, and its files in a bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.lower.experts import REASON
from edgecompress.types.artifact import Artifact, ModelContents, ModelFiles
from edgecompress.types.bundle import TensorSpec
from edgecompress.types.precision import FP32
from edgecompress.types.report import ALONE_KEY, Layer

_EXPERT_PART = re.compile(r"^(model\.)*|(\.arranged|_int\d|_scale|_zero_point)$")


def tensor_spec(value: ir.Value) -> TensorSpec:
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    shape = tuple(d if isinstance(d, int) else str(d) for d in (value.shape or ()))
    return TensorSpec(name=value.name or "", dtype=dtype, shape=shape)


@dataclass(frozen=True, kw_only=True)
class OwnWeight:
    """An initializer of one of a backend's own ops."""

    label: str
    bits: int | None = None  # None: as its dtype
    listed: bool = True  # False: an auxiliary of a weight, such as scales


OwnWeights = Callable[[ir.Node, str, ir.Value], OwnWeight | None]
"""(node, initializer's name, initializer) -> its description, or None if the op is not the backend's own."""


def no_own_weights(node: ir.Node, name: str, value: ir.Value) -> OwnWeight | None:
    return None


def inputs_of(artifact: Artifact) -> tuple[TensorSpec, ...]:
    return tuple(tensor_spec(value) for value in ir.load(artifact.graph.path).graph.inputs)


def contents_of(artifact: Artifact, own: OwnWeights = no_own_weights) -> ModelContents:
    """Return the contents of the ONNX file."""
    model = ir.load(artifact.graph.path)
    return ModelContents(
        inputs=tuple(tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(tensor_spec(value) for value in model.graph.outputs),
        layers=weight_layers(model, own),
        ops=op_counts(model),
        notes=weight_notes(model, own),
    )


def onnx_files(artifact: Artifact, *, apart: bool) -> ModelFiles:
    """Return the ONNX files by their names in a bundle. Large weights are in a separate file.

    ``apart``: small ones too, so that another program can share them.
    """
    name, graph = f"{artifact.name}.onnx", artifact.graph
    if not (graph.data.exists() or apart):
        return ModelFiles(path=name, files={name: graph.path})
    renamed = graph.path.with_name(name)
    ir.save(ir.load(graph.path), renamed, external_data=f"{name}.data")
    return ModelFiles(path=name, files={name: renamed, f"{name}.data": renamed.with_name(f"{name}.data")})


def op_counts(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def weight_layers(model: ir.Model, own: OwnWeights = no_own_weights) -> tuple[Layer, ...]:
    """Return every constant matrix of the graph, with the op that reads it and its stored precision."""
    alone = json.loads(model.metadata_props.get(ALONE_KEY, "{}"))
    layers = (_layer(name, value, alone, own) for name, value in model.graph.initializers.items())
    return tuple(sorted((layer for layer in layers if layer is not None), key=lambda layer: layer.name))


def _layer(name: str, value: ir.Value, alone: Mapping[str, float], own: OwnWeights) -> Layer | None:
    tensor = value.const_value
    node = next((node for node, _ in value.uses()), None)
    if tensor is None or len(tensor.shape) < 2 or node is None or tensor.dtype == ir.DataType.INT64:
        return None
    ours = own(node, name, value)
    if ours is not None and not ours.listed:
        return None
    bits = _bits(node, name, value, own)
    precision = f"int{bits}" if bits is not None else tensor.dtype.numpy().name
    label = (node.name or name).split("/", 1)[0]
    if ours is not None:
        label = ours.label
    elif _computes_experts(node) and node.op_type != "GatherND":  # one node reads several weights
        label = _EXPERT_PART.sub("", name)
    shape = tuple(int(str(size)) for size in tensor.shape)
    kl = alone.get(label) if tensor.dtype == ir.DataType.UINT8 else None
    return Layer(name=label, op=node.op_type, shape=shape, precision=precision, bytes=tensor.nbytes, alone_kl=kl)


def _bits(node: ir.Node, name: str, value: ir.Value, own: OwnWeights) -> int | None:
    """Bits of a weight, or of the weight that belongs to scales; None if not quantized."""
    bits = node.attributes.get("bits") or node.attributes.get("expert_weight_bits")
    if bits is not None:
        return bits.as_int()
    ours = own(node, name, value)
    return ours.bits if ours is not None else None


def weight_notes(model: ir.Model, own: OwnWeights = no_own_weights) -> tuple[str, ...]:
    """Notes for the report on all weights: mean bits if they differ, and accuracy levels of MatMulNBits."""
    bits: dict[int, int] = {}
    for name, value in model.graph.initializers.items():
        uses = list(value.uses())
        width = _bits(uses[0][0], name, value, own) if uses else None
        if width is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.UINT8:
            bits[width] = bits.get(width, 0) + value.const_value.nbytes
    notes = []
    if len(bits) > 1:
        mean = 8 * sum(bits.values()) / sum(8 * size / width for width, size in bits.items())
        notes.append(f"{mean:.2f} bits per weight, without scales")
    levels = {n.attributes["accuracy_level"].as_int() for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"}
    if levels:
        notes.append(f"MatMulNBits at accuracy level {', '.join(map(str, sorted(levels)))}")
    return (*notes, *expert_notes(model))


def _computes_experts(node: ir.Node) -> bool:
    if node.op_type in ("MoE", "QMoE"):
        return True
    gathers = node.op_type in ("Gather", "GatherND", "GatherBlockQuantized")  # GatherND: as the exporter writes it
    return gathers and any("MatMul" in reader.op_type for reader, _ in node.outputs[0].uses())


def expert_notes(model: ir.Model) -> tuple[str, ...]:
    """Notes for the report on a mixture's experts: which are gathered, and which stay float32."""
    experts = []
    for name, value in model.graph.initializers.items():
        if any(_computes_experts(node) for node, _ in value.uses()):
            experts.append(_layer(name, value, {}, no_own_weights))
    layers = [layer for layer in experts if layer is not None and len(layer.shape) == 3]
    notes = []
    gathered = [layer for layer in layers if layer.op.startswith("Gather")]
    if gathered:
        kinds = ", ".join(sorted({layer.precision for layer in gathered}))
        reason = model.metadata_props.get(REASON, "their gate is unknown")
        notes.append(f"each token gathers its experts' weights, {_megabytes(gathered)} in {kinds}: {reason}")
    floats = [layer for layer in layers if layer.precision == "float32"]
    if floats and model.metadata_props.get("edgecompress.precision", FP32) != FP32:
        reason = "" if gathered else ": no block of 16 or more divides their widths"
        notes.append(f"experts of {_megabytes(floats)} stay in float32{reason}")
    return tuple(notes)


def _megabytes(layers: Sequence[Layer]) -> str:
    return f"{sum(layer.bytes for layer in layers) / 1e6:.1f} MB"
