"""What a compiled graph holds, as a manifest and a report tell it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.formats.cpu import host_cpu_name
from edgecompress.types.bundle import TargetRecord, TensorSpec
from edgecompress.types.report import ALONE_KEY, Layer
from edgecompress.types.target import Target

_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers", "numpy")
_ISA_REASON = {
    True: "its int8 products are summed in 32 bits by VNNI; without it u8 x s8 pairs saturate and answers are wrong",
    False: "it was compiled for these CPU features",
}


def target_record(target: Target, precision: str, providers: tuple[str, ...]) -> TargetRecord:
    """What a load must check before it runs the model."""
    return TargetRecord(
        name=target.name,
        arch=target.arch,
        backend="onnxruntime",
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
    layers = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        uses = list(value.uses())
        if tensor is None or len(tensor.shape) < 2 or not uses or tensor.dtype == ir.DataType.INT64:
            continue
        node = uses[0][0]
        bits = node.attributes.get("bits")
        precision = f"int{bits.as_int()}" if bits is not None else tensor.dtype.numpy().name
        shape = tuple(int(str(size)) for size in tensor.shape)
        label = (node.name or name).rsplit("/", 1)[0]
        kl = alone.get(label.removesuffix("/BlockEmbedding")) if tensor.dtype == ir.DataType.UINT8 else None
        layers.append(
            Layer(name=label, op=node.op_type, shape=shape, precision=precision, bytes=tensor.nbytes, alone_kl=kl)
        )
    return tuple(sorted(layers, key=lambda layer: layer.name))


def weight_notes(model: ir.Model) -> tuple[str, ...]:
    """What a report says of all weights together: the mean of their bits where they differ, how products are made."""
    bits: dict[int, int] = {}
    for value in model.graph.initializers.values():
        uses = list(value.uses())
        width = uses[0][0].attributes.get("bits") if uses else None
        if width is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.UINT8:
            bits[width.as_int()] = bits.get(width.as_int(), 0) + value.const_value.nbytes
    notes = []
    if len(bits) > 1:
        mean = 8 * sum(bits.values()) / sum(8 * size / width for width, size in bits.items())
        notes.append(f"{mean:.2f} bits a weight, scales not counted")
    levels = {n.attributes["accuracy_level"].as_int() for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"}
    if levels:
        notes.append(f"MatMulNBits at accuracy level {', '.join(map(str, sorted(levels)))}")
    return tuple(notes)
