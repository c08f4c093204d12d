"""Times single ops, ours and ONNX Runtime's alternately, on a decoder's shapes: a decode step and a prefill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgecompress.errors import HostError
from edgecompress.graph.sessions import PROVIDERS, session_options
from edgecompress.graph.timing import time_in_turn
from edgecompress.runtime.weights import huge_region

_ROWS = (1, 64)
_CONTEXTS = ((1, 128), (1, 1024), (64, 0))  # new tokens, cached tokens
_OURS, _THEIRS = "ours", "ONNX Runtime's"
_AGREE = 2e-2  # relative to the largest output: the summation order differs


def time_kernels(kernel: str, key: tuple[Any, ...], threads: int, library: Path) -> dict[str, float]:
    """Return shape -> speedup over ONNX Runtime's op. Raises HostError if the outputs differ."""
    sides = _matmul(key, threads, library) if kernel == "matmul" else _attention(key, threads, library)
    speedups = {}
    for label, (ours, theirs) in sides.items():
        expected, found = theirs(), ours()
        if not np.abs(expected - found).max() <= _AGREE * max(1e-6, float(np.abs(expected).max())):
            raise HostError(
                f"the kernel '{kernel}' and ONNX Runtime's op differ by {np.abs(expected - found).max():.2g}",
                hint="Export with --kernels none, and report this bug.",
            )
        seconds = time_in_turn({_OURS: lambda _, run=ours: [run()], _THEIRS: lambda _, run=theirs: [run()]}, {})  # type: ignore[misc]
        speedups[label] = round(float(np.median(np.array(seconds[_THEIRS]) / np.array(seconds[_OURS]))), 3)
    return speedups


Call = Callable[[], Any]


def _bound(session: ort.InferenceSession, feeds: dict[str, Any], output: Any, shared: dict[str, str]) -> Call:
    """Return the session as a call; ``shared`` maps an output to the input whose memory it uses."""
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    names = {i.name for i in session.get_inputs()}
    for name, value in values.items():
        if name in names:
            binding.bind_ortvalue_input(name, value)
    for name, source in shared.items():
        binding.bind_ortvalue_output(name, values[source])
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(output))

    def call(kept: Any = values) -> Any:
        session.run_with_iobinding(binding)
        return output

    return call


def _session(graph: ir.Graph, threads: int, library: Path | None) -> ort.InferenceSession:
    model = ir.Model(graph, ir_version=10)
    options = session_options(threads)
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=list(PROVIDERS))


def _graph(
    node: ir.Node,
    inputs: list[ir.Value],
    initializers: dict[str, ir.Value],
    domain: str,
    cache: ir.DataType = ir.DataType.FLOAT,
) -> ir.Graph:
    for output, name in zip(node.outputs, ("y", "k", "v"), strict=False):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT if name == "y" else cache)
    return ir.Graph(
        inputs,
        list(node.outputs),
        nodes=[node],
        initializers=list(initializers.values()),
        opset_imports={"": 21, domain: 1},
    )


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _constant(name: str, array: Any) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def _matmul(key: tuple[Any, ...], threads: int, library: Path) -> dict[str, tuple[Call, Call]]:
    from edgecompress_kernels.cpu.packing import pack_lanes, pack_weights

    k, n, bits, block, zero_points, half = key
    random = np.random.default_rng(0)
    weights = random.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8)
    scales = (random.random((n, k // block), dtype=np.float32) + 0.5) / k
    if half:
        scales = scales.astype(np.float16).astype(np.float32)
    x = _input("x", ir.DataType.FLOAT, ["rows", k])
    points = None
    if zero_points:
        points = np.full((n, -(-(k // block) * bits // 8)), 0x77 if bits == 4 else 0x7F, dtype=np.uint8)
    given = {"w": _constant("w", weights), "s": _constant("s", scales.reshape(-1))}
    if points is not None:
        given["z"] = _constant("z", points.reshape(-1))
    theirs = ir.node(
        "MatMulNBits", [x, *given.values()], domain="com.microsoft",
        attributes={"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4},
    )  # fmt: skip
    session = _session(_graph(theirs, [x], given, "com.microsoft"), threads, None)
    packed = {"w": pack_weights(weights, bits), "s": pack_lanes(scales.astype(np.float16) if half else scales)}
    if points is not None:
        packed["z"] = pack_lanes(np.full((n, k // block), 7 if bits == 4 else 0x7F, dtype=np.uint8))
    feeds = {}
    for name, array in packed.items():
        place = huge_region(array.nbytes).view(array.dtype).reshape(array.shape)
        place[...] = array
        feeds[name] = place
    mine = [_input("x", ir.DataType.FLOAT, ["rows", k])]
    mine += [_input(name, ir.DataType.from_numpy(array.dtype), list(array.shape)) for name, array in feeds.items()]
    ours = ir.node(
        "MatMulBlocks", mine, domain="edgecompress", attributes={"K": k, "N": n, "bits": bits, "block_size": block}
    )
    session_of_ours = _session(_graph(ours, mine, {}, "edgecompress"), threads, library)
    sides = {}
    for rows in _ROWS:
        data = random.standard_normal((rows, k)).astype(np.float32)
        sides[f"{rows} row{'s' * (rows > 1)}"] = (
            _bound(session_of_ours, {"x": data, **feeds}, np.empty((rows, n), np.float32), {}),
            _bound(session, {"x": data}, np.empty((rows, n), np.float32), {}),
        )
    return sides


def _kept(x: Any, step: Any, *, int8: bool) -> Any:
    return np.clip(np.rint(x / step), -128, 127).astype(np.int8) if int8 else x


def _attention(key: tuple[Any, ...], threads: int, library: Path) -> dict[str, tuple[Call, Call]]:
    heads, kv_heads, size, rotary, window, int8 = key
    kept = ir.DataType.INT8 if int8 else ir.DataType.FLOAT
    step = np.float32(4 / 127) if int8 else np.float32(1)  # covers almost all standard normal numbers
    random = np.random.default_rng(0)
    longest = max(new + behind for new, behind in _CONTEXTS) + 1
    width = (heads + 2 * kv_heads) * size

    def session(ours: bool) -> ort.InferenceSession:
        inputs = [_input("x", ir.DataType.FLOAT, ["b", "t", width])]
        cache: list[int | str] = ["b", kv_heads, "c", size]
        inputs += [_input(name, kept, cache) for name in ("past_k", "past_v")]
        inputs += [_input("last", ir.DataType.INT32, ["b"]), _input("total", ir.DataType.INT32, [])]
        constants, wanted = {}, [inputs[0], None, None, *inputs[1:]]
        options: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5}
        options["local_window_size"] = window
        if rotary:
            angles = np.arange(longest)[:, None] / 10_000 ** (np.arange(rotary // 2) / (rotary // 2))
            for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
                constants[name] = _constant(name, table.astype(np.float32))
            inputs.append(_input("positions", ir.DataType.INT64, ["b", "t"]))
            wanted += [*constants.values(), inputs[-1]]
        if int8:
            scales = np.full((1, kv_heads, 1, size), step)
            constants |= {name: _constant(name, scales) for name in ("k_scale", "v_scale")}
            wanted += [None] * ((10 if ours else 12) - len(wanted))
            wanted += [constants["k_scale"], constants["v_scale"]]
        if ours:
            op, domain = f"CachedAttention{'Int8' * int8}", "edgecompress"
            options["head_size"] = size
        else:
            op, domain = "GroupQueryAttention", "com.microsoft"
            options["do_rotary"] = int(bool(rotary))
            if int8:
                options |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        node = ir.node(op, wanted, domain=domain, num_outputs=3, attributes=options)
        return _session(_graph(node, inputs, constants, domain, kept), threads, library if ours else None)

    pair = session(True), session(False)
    sides = {}
    for new, behind in _CONTEXTS:
        calls = []
        state = random.bit_generator.state
        for side in pair:
            random.bit_generator.state = state  # the same random numbers for both
            shape = (1, kv_heads, behind + new, size)
            feeds = {
                "x": random.standard_normal((1, new, width)).astype(np.float32),
                "past_k": _kept(random.standard_normal(shape).astype(np.float32), step, int8=int8),
                "past_v": _kept(random.standard_normal(shape).astype(np.float32), step, int8=int8),
                "last": np.array([behind + new - 1], dtype=np.int32),
                "total": np.array(behind + new, dtype=np.int32),
                "positions": np.arange(behind, behind + new, dtype=np.int64)[None],
            }
            output = np.empty((1, new, heads * size), np.float32)
            calls.append(_bound(side, feeds, output, {"k": "past_k", "v": "past_v"}))
        label = f"a step behind {behind} tokens" if new == 1 else f"a prompt of {new}"
        sides[label] = (calls[0], calls[1])
    return sides
