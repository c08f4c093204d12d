"""A double of TensorRT's and TensorRT-RTX's bindings whose engines compute: ONNX Runtime runs the graph on the CPU.

The file of such an engine names two graphs: the one that the engine would have been built from, for names, types and
shapes, and the same for ONNX Runtime's CPU provider, rounded to float16 where the first is float16. Memory is that of
:mod:`tests.runtime.fake_cuda`, and a run is done when its stream is waited for.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from tests.runtime.fake_cuda import FakeCuda

NAMES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL"}


class DataType(enum.Enum):
    FLOAT, HALF, INT64, INT32, BOOL, BF16 = range(6)


def fake_tensorrt(cuda: FakeCuda, *, rtx: bool = False, refuses: str = "") -> Any:
    """``rtx``: with what TensorRT-RTX has more; ``refuses``: what its log says where an engine cannot be opened."""

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 2, 3

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, serialized: bytes) -> Any:
            self.logger.log(ILogger.WARNING, "nothing of note")
            if refuses:
                self.logger.log(ILogger.ERROR, refuses)
                return None
            return FakeEngine(cuda, module, self.logger, json.loads(serialized))

    module = SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        DataType=DataType,
        TensorIOMode=SimpleNamespace(INPUT=1, OUTPUT=2),
        TensorLocation=SimpleNamespace(DEVICE=0, HOST=1),
        contexts=[],
    )
    if rtx:
        module.CudaGraphStrategy = SimpleNamespace(DISABLED=0, WHOLE_GRAPH_CAPTURE=1)
    return module


class FakeEngine:
    device_memory_size_v2 = 4096

    def __init__(self, cuda: FakeCuda, module: Any, logger: Any, files: dict[str, str]) -> None:
        self.cuda, self.module, self.logger = cuda, module, logger
        graph = ir.load(files["typed"]).graph
        self.session = ort.InferenceSession(files["runs"], providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in [*graph.inputs, *graph.outputs]}
        self.inputs = [value.name for value in graph.inputs]
        self.outputs = [value.name for value in graph.outputs]
        self.no_memory = files.get("no_memory", "")

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[NAMES[self.values[name].dtype.name]]

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in self.inputs else 2

    def get_tensor_location(self, name: str) -> int:
        return 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

    def get_aliased_input_tensor(self, name: str) -> str:
        return name.replace("present.", "past_key_values.") if name.startswith("present.") else ""

    def create_runtime_config(self) -> Any:
        return FakeConfig()

    def create_execution_context(self, config: Any = None) -> Any:
        if self.no_memory:
            self.logger.log(self.module.ILogger.ERROR, self.no_memory)
            return None
        made = FakeContext(self, config)
        self.module.contexts.append(made)
        return made


class FakeConfig:
    cuda_graph_strategy = 0

    def create_runtime_cache(self) -> Any:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class FakeRuntimeCache:
    blob = b""

    def deserialize(self, blob: bytes) -> bool:
        self.blob = blob
        return True

    def serialize(self) -> bytes:
        return self.blob + b"compiled "


class FakeContext:
    def __init__(self, engine: FakeEngine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.executed: list[dict[str, tuple[int, ...]]] = []
        self.fails = ""  # what its log says then

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        known = self.engine.get_tensor_shape(name)
        if len(known) != len(shape) or any(k not in (-1, s) for k, s in zip(known, shape, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for each in self.engine.inputs:
            for axis, size in zip(self.engine.values[each].shape, self.shapes[each], strict=True):
                if not isinstance(axis, int):
                    assert sizes.setdefault(str(axis), size) == size, f"'{axis}' is two sizes"
        return tuple(s if isinstance(s, int) else sizes[str(s)] for s in self.engine.values[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.fails:
            self.engine.logger.log(self.engine.module.ILogger.ERROR, self.fails)
            return False
        engine, shapes, addresses = self.engine, dict(self.shapes), dict(self.addresses)
        assert set(addresses) == set(engine.values), "every tensor has its address"
        outputs = {name: self.get_tensor_shape(name) for name in engine.outputs}

        def tensor(name: str, shape: tuple[int, ...]) -> Any:
            dtype = engine.values[name].dtype.numpy()
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return engine.cuda.bytes_at(addresses[name], size).view(dtype).reshape(shape)

        def run() -> None:
            self.executed.append(shapes)
            feed = {}
            for value in engine.session.get_inputs():
                given = tensor(value.name, shapes[value.name])
                feed[value.name] = given.astype(np.float32) if value.type == "tensor(float)" else given
            for value, found in zip(engine.session.get_outputs(), engine.session.run(None, feed), strict=True):
                tensor(value.name, outputs[value.name])[...] = found

        engine.cuda.put(stream_handle, run)
        return True


def engine_file(typed: Path, runs: Path, **more: str) -> bytes:
    return json.dumps({"typed": str(typed), "runs": str(runs), **more}).encode()
