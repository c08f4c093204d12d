"""The encoder's ops in sessions of their own, and layers of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from edgecompress_kernels.cpu.build import Encoder
from edgecompress_kernels.cpu.encoder_packing import pack_columns, pack_panels
from onnx import TensorProto, helper, numpy_helper

from tests.kernels.ops import make_session, model_of

EPSILON = 1e-5
_PARTS = ("out", "up", "down", "qkv")
_KINDS = {"x": TensorProto.FLOAT, "projections": TensorProto.UINT8, "starts": TensorProto.INT64}


def random_layer(kind: Encoder, rng: np.random.Generator, *, smooth: bool) -> dict[str, Any]:
    """Weights that let every part of a layer be heard in its output, as ``reference.encoder_layer`` takes them."""

    most = 2 ** (kind.weight_bits - 1) - 1

    def linear(inputs: int, outputs: int, gain: float) -> dict[str, Any]:
        return {
            "weights": rng.integers(-most, most + 1, (inputs, outputs), dtype=np.int8),
            "scales": (gain * (0.5 + rng.random(outputs)) / (0.58 * most) / inputs**0.5).astype(np.float32),
            "bias": rng.standard_normal(outputs).astype(np.float32) / 2,
            "smooth": (0.5 + rng.random(inputs)).astype(np.float32) if smooth else np.ones(inputs, np.float32),
        }

    def norm() -> tuple[Any, Any]:
        return (0.5 + rng.random(kind.hidden)).astype(np.float32), rng.standard_normal(kind.hidden).astype(np.float32)

    return {
        "qkv": linear(kind.hidden, 3 * kind.hidden, 1.0),
        "out": linear(kind.hidden, kind.hidden, 3.0),
        "up": linear(kind.hidden, kind.feed_forward, 1.0),
        "down": linear(kind.feed_forward, kind.hidden, 3.0),
        "norm1": norm(),
        "norm2": norm(),
    }


def _packed(layer: dict[str, Any], part: str, name: str, *, smooth: bool) -> tuple[list[str], list[Any]]:
    w, s, b = (layer[part][key] for key in ("weights", "scales", "bias"))
    arrays = {f"{name}_w": pack_panels(w), f"{name}_c": pack_columns(w, s, b)}
    if smooth:
        arrays[f"{name}_s"] = layer[part]["smooth"]
    names = [*arrays] if smooth else [*arrays, ""]
    return names, [numpy_helper.from_array(array, key) for key, array in arrays.items()]


def _attributes(kind: Encoder) -> dict[str, Any]:
    numbers = {"scale": kind.head_size**-0.5, "epsilon1": EPSILON, "epsilon2": EPSILON}
    return {
        "hidden": kind.hidden, "num_heads": kind.heads, "feed_forward": kind.feed_forward,
        "weight_bits": kind.weight_bits, **numbers,
    }  # fmt: skip


def _graph(nodes: list[Any], inputs: list[str], outputs: dict[str, int], constants: list[Any]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, _KINDS[name], None) for name in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        constants,
    )


def layer_model(kind: Encoder, layer: dict[str, Any], *, smooth: bool) -> bytes:
    """One layer, its projections included: rows ``x`` and ``starts`` -> ``y``."""
    names, constants = [], []
    for part in _PARTS:
        given, arrays = _packed(layer, part, part, smooth=smooth)
        names.append(given)
        constants += arrays
    for norm in ("norm1", "norm2"):
        names.append([f"{norm}_g", f"{norm}_b"])
        constants += [numpy_helper.from_array(a, f"{norm}_{k}") for k, a in zip("gb", layer[norm], strict=True)]
    out, up, down, qkv, norm1, norm2 = names
    attributes = {"domain": "edgecompress", **_attributes(kind)}
    nodes = [
        helper.make_node("EncoderProjections", ["x", *qkv], ["p"], **attributes),
        helper.make_node(
            "EncoderLayer", ["x", "p", "starts", *out, *up, *down, *norm1, *norm2], ["y", "rest"], **attributes
        ),
    ]
    return model_of(_graph(nodes, ["x", "starts"], {"y": TensorProto.FLOAT}, constants))


def projections(
    library: Path, kind: Encoder, layer: dict[str, Any], *, smooth: bool, threads: int = 2
) -> ort.InferenceSession:
    names, constants = _packed(layer, "qkv", "qkv", smooth=smooth)
    node = helper.make_node("EncoderProjections", ["x", *names], ["p"], domain="edgecompress", **_attributes(kind))
    return make_session(_graph([node], ["x"], {"p": TensorProto.UINT8}, constants), library, threads)


def encoder_layer(
    library: Path, kind: Encoder, layer: dict[str, Any], following: dict[str, Any] | None = None, *, smooth: bool,
    threads: int = 2,
) -> ort.InferenceSession:  # fmt: skip
    names, constants = ["x", "projections", "starts"], []
    for part in ("out", "up", "down"):
        given, arrays = _packed(layer, part, part, smooth=smooth)
        names += given
        constants += arrays
    for norm in ("norm1", "norm2"):
        names += [f"{norm}_g", f"{norm}_b"]
        constants += [numpy_helper.from_array(a, f"{norm}_{k}") for k, a in zip("gb", layer[norm], strict=True)]
    if following is not None:
        given, arrays = _packed(following, "qkv", "next", smooth=smooth)
        names += given
        constants += arrays
    node = helper.make_node("EncoderLayer", names, ["y", "p"], domain="edgecompress", **_attributes(kind))
    outputs = {"y": TensorProto.FLOAT, "p": TensorProto.UINT8}
    return make_session(_graph([node], ["x", "projections", "starts"], outputs, constants), library, threads)


def poisoned(session: ort.InferenceSession, feeds: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """Run into buffers whose every byte is 255: floats there are NaN, so an unwritten one shows."""
    binding = session.io_binding()
    buffers = {}
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        if output.name in shapes:
            shape, dtype = shapes[output.name]
            buffers[output.name] = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 255, np.uint8).view(dtype)
            buffers[output.name] = buffers[output.name].reshape(shape)
            value = ort.OrtValue.ortvalue_from_numpy(buffers[output.name])
            binding.bind_ortvalue_output(output.name, value)
        else:
            binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return buffers
