"""What a compiled graph holds, as a manifest and a report tell it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgecompress.backends.onnxruntime_cpu.decoder_layers import weight_bits
from edgecompress.formats.cpu import host_cpu_name
from edgecompress.lower.experts import REASON
from edgecompress.types.bundle import TargetRecord, TensorSpec
from edgecompress.types.report import ALONE_KEY, Layer
from edgecompress.types.target import Target

_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers", "numpy")
_EXPERT_PART = re.compile(r"^(model\.)*|(\.arranged|_int\d|_scale|_zero_point)$")
_TILES_PART = re.compile(r"^(model\.)*(?=model\.)|(\.weight)?_int\d\.tile(s|_scales|_zero_points)$")
_PANEL_PART = re.compile(r"(\.weight)?_int8\.panels$")
_ISA_REASON = {
    True: "its int8 products are summed in 32 bits by VNNI; without it u8 x s8 pairs saturate and answers are wrong",
    False: "it was compiled for these CPU features",
}


def target_record(target: Target, precision: str, providers: tuple[str, ...], backend: str) -> TargetRecord:
    """What a load must check before it runs the model."""
    return TargetRecord(
        name=target.name,
        arch=target.arch,
        backend=backend,
        providers=providers,
        isa=target.isa,
        isa_reason=_ISA_REASON[target.has_vnni and precision.startswith("int8")],
    )


def versions() -> Mapping[str, str]:
    """Python and the packages that make a bundle."""
    return {"python": platform.python_version()} | {p: version_of(p) for p in _PACKAGES}


def host_facts(threads: int) -> Mapping[str, str]:
    """What a latency was measured on."""
    return {
        "cpu": host_cpu_name(),
        "threads": str(threads),
        "onnxruntime": version_of("onnxruntime"),
        "python": platform.python_version(),
    }


def version_of(package: str) -> str:
    return importlib.metadata.version(package)


def tensor_spec(value: ir.Value) -> TensorSpec:
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    shape = tuple(d if isinstance(d, int) else str(d) for d in (value.shape or ()))
    return TensorSpec(name=value.name or "", dtype=dtype, shape=shape)


def op_counts(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def weight_layers(model: ir.Model) -> tuple[Layer, ...]:
    """Every constant matrix of the graph: by which op it is read, and in what precision it is stored."""
    alone = json.loads(model.metadata_props.get(ALONE_KEY, "{}"))
    layers = (_layer(name, value, alone) for name, value in model.graph.initializers.items())
    return tuple(sorted((layer for layer in layers if layer is not None), key=lambda layer: layer.name))


def _layer(name: str, value: ir.Value, alone: Mapping[str, float]) -> Layer | None:
    tensor = value.const_value
    node = next((node for node, _ in value.uses()), None)
    if tensor is None or len(tensor.shape) < 2 or node is None or tensor.dtype == ir.DataType.INT64:
        return None
    panels = node.op_type in ("EncoderLayer", "EncoderProjections")  # one node reads several weights, and their columns
    if panels and tensor.dtype != ir.DataType.INT8:
        return None
    bits = _bits(node, value)
    precision = f"int{bits}" if bits is not None else tensor.dtype.numpy().name
    label = (node.name or name).split("/", 1)[0]
    if value in weight_bits(node):
        label = _TILES_PART.sub("", name)
    elif _computes_experts(node) and node.op_type != "GatherND":  # one node reads several of their weights
        label = _EXPERT_PART.sub("", name)
    elif panels:
        label = _PANEL_PART.sub("", name)
    shape = tuple(int(str(size)) for size in tensor.shape)
    kl = alone.get(label) if tensor.dtype == ir.DataType.UINT8 else None
    return Layer(name=label, op=node.op_type, shape=shape, precision=precision, bytes=tensor.nbytes, alone_kl=kl)


def _bits(node: ir.Node, value: ir.Value) -> int | None:
    """Of a weight, or of the scales of one, that the node reads; None for one that is not quantized."""
    bits = node.attributes.get("bits") or node.attributes.get("expert_weight_bits")
    return bits.as_int() if bits is not None else weight_bits(node).get(value)


def weight_notes(model: ir.Model) -> tuple[str, ...]:
    """What a report says of all weights together: the mean of their bits where they differ, how products are made."""
    bits: dict[int, int] = {}
    for value in model.graph.initializers.values():
        uses = list(value.uses())
        width = _bits(uses[0][0], value) if uses else None
        if width is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.UINT8:
            bits[width] = bits.get(width, 0) + value.const_value.nbytes
    notes = []
    if len(bits) > 1:
        mean = 8 * sum(bits.values()) / sum(8 * size / width for width, size in bits.items())
        notes.append(f"{mean:.2f} bits a weight, scales not counted")
    levels = {n.attributes["accuracy_level"].as_int() for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"}
    if levels:
        notes.append(f"MatMulNBits at accuracy level {', '.join(map(str, sorted(levels)))}")
    return (*notes, *expert_notes(model))


def _computes_experts(node: ir.Node) -> bool:
    if node.op_type in ("MoE", "QMoE"):
        return True
    gathers = node.op_type in ("Gather", "GatherND", "GatherBlockQuantized")  # ND: as the exporter writes it
    return gathers and any("MatMul" in reader.op_type for reader, _ in node.outputs[0].uses())


def expert_notes(model: ir.Model) -> tuple[str, ...]:
    """What a report says of a mixture's experts: which are gathered, and which stay float among rounded weights."""
    experts = []
    for name, value in model.graph.initializers.items():
        if any(_computes_experts(node) for node, _ in value.uses()):
            experts.append(_layer(name, value, {}))
    layers = [layer for layer in experts if layer is not None and len(layer.shape) == 3]
    notes = []
    gathered = [layer for layer in layers if layer.op.startswith("Gather")]
    if gathered:
        kinds = ", ".join(sorted({layer.precision for layer in gathered}))
        reason = model.metadata_props.get(REASON, "their gate is none that is known")
        notes.append(f"each token gathers its experts' weights, {_megabytes(gathered)} in {kinds}: {reason}")
    floats = [layer for layer in layers if layer.precision == "float32"]
    if floats and model.metadata_props.get("edgecompress.precision", "fp32") != "fp32":
        reason = "" if gathered else ": no block of 16 or more divides their widths"
        notes.append(f"experts of {_megabytes(floats)} stay in float32{reason}")
    return tuple(notes)


def _megabytes(layers: Sequence[Layer]) -> str:
    return f"{sum(layer.bytes for layer in layers) / 1e6:.1f} MB"
