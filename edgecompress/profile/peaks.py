"""This machine's measured peaks: bytes read per second, and operations per second of large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from edgecompress.runtime.weights import huge_region
from edgecompress.types.profile import Peaks, Reads

MEMORY_BYTES = 1 << 29  # larger than the caches of most processors
_LEAST_BYTES = 1 << 19  # smaller buffers would measure the overhead of numpy's call
_LEAST_S = 2e-3  # of one measurement, in repeated passes over a buffer
_ROWS, _INNER, _COLUMNS = 512, 1024, 4096
_LONGEST_S, _MOST_CALLS = 0.6, 200
_LONGEST_READ_S = 0.15


class Bandwidth:
    """How fast some threads together reread a buffer in huge pages: the best of several rounds."""

    def __init__(self, threads: int, buffer_bytes: int = MEMORY_BYTES) -> None:
        data = huge_region(max(4096 * threads, buffer_bytes) // 8 * 8).view(np.int64)
        data[:] = 1
        self._bytes, self._parts = data.nbytes, np.array_split(data, threads)
        self._pool = ThreadPoolExecutor(threads)

    def bytes_per_s(self, longest_s: float = _LONGEST_S) -> float:
        times = max(1, round(_LEAST_S * 1e10 / self._bytes))

        def again(part: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
            for _ in range(times):
                part.max()

        return self._bytes * times / _best(lambda: list(self._pool.map(again, self._parts)), longest_s)


def measure_peaks(threads: int) -> Peaks:
    """Takes a few seconds. Buffers double from half a megabyte per thread to more than any cache holds."""
    size, reads = _LEAST_BYTES * threads, []
    while size < 2 * MEMORY_BYTES:
        rate = Bandwidth(threads, size).bytes_per_s(_LONGEST_READ_S if size < MEMORY_BYTES else _LONGEST_S)
        reads.append(Reads(buffer_bytes=size, bytes_per_s=round(rate)))
        size *= 2
    return Peaks(
        threads=threads,
        reads=tuple(reads),
        ops_per_s={"float32": round(_products(threads, np.float32)), "int8": round(_products(threads, np.int8))},
    )


def read_rate(peaks: Peaks, buffer_bytes: float) -> float:
    """Bytes/s for a buffer of that size; log-linear between two measured sizes."""
    sizes = [np.log(each.buffer_bytes) for each in peaks.reads]
    rates = [np.log(each.bytes_per_s) for each in peaks.reads]
    return float(np.exp(np.interp(np.log(max(1.0, buffer_bytes)), sizes, rates)))


def memory_rate(peaks: Peaks) -> float:
    """Bytes/s for a buffer that no cache holds."""
    return peaks.reads[-1].bytes_per_s


def _products(threads: int, dtype: type) -> float:
    """Operations/s of ONNX Runtime's matrix product; a multiply-add is two operations."""
    import onnx_ir as ir

    rng, integers = np.random.default_rng(0), dtype is np.int8
    if integers:
        rows: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = rng.integers(0, 255, (_ROWS, _INNER), dtype=np.uint8)
        weights: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = rng.integers(
            -63, 63, (_INNER, _COLUMNS), dtype=np.int8
        )
    else:
        rows = rng.standard_normal((_ROWS, _INNER), dtype=np.float32)
        weights = rng.standard_normal((_INNER, _COLUMNS), dtype=np.float32)
    x = ir.Value(
        name="x",
        type=ir.TensorType(ir.DataType.UINT8 if integers else ir.DataType.FLOAT),
        shape=ir.Shape([_ROWS, _INNER]),
    )
    constant = ir.Value(name="w", const_value=ir.tensor(weights, name="w"))
    node = ir.node("MatMulInteger" if integers else "MatMul", [x, constant])
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.INT32 if integers else ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape([_ROWS, _COLUMNS])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": 21}, name="product")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return 2.0 * _ROWS * _INNER * _COLUMNS / _best(lambda: session.run(None, {"x": rows}))


def _best(call: Callable[[], object], longest_s: float = _LONGEST_S) -> float:
    """Seconds of the fastest call."""
    began, best, done = time.perf_counter(), float("inf"), 0
    while done < 2 or (done < _MOST_CALLS and time.perf_counter() - began < longest_s):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        done += 1
    return best
