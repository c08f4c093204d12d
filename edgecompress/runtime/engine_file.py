"""Opens an engine file of TensorRT or TensorRT-RTX, which have the same Python API. Not yet run on a GPU.

The kernels that TensorRT-RTX compiles on an engine's first run are kept in the user's cache folder, so that the next
process starts quickly; it also captures CUDA graphs by itself, one per shape. A test checks every name that this module
uses against TensorRT 10, TensorRT 11 and TensorRT-RTX.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import BundleError, HostError
from edgecompress.runtime.cuda.device import Device, DeviceMemoryError, is_out_of_memory
from edgecompress.types.bundle import EngineRecord, Manifest, Variant

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}
_LONGEST = 300  # characters of a library message


@dataclass(frozen=True, kw_only=True)
class EngineLibrary:
    """The Python package that runs a backend's engines."""

    package: str  # distribution name
    module: str  # import name
    file: str  # the native library, for messages


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # -1: a dynamic axis
    is_input: bool
    on_host: bool  # a shape tensor, in host memory
    shares: str  # the input whose memory this output is written to; "": its own


class EngineFile:
    """An engine on one device. ``context`` does one run at a time."""

    def __init__(
        self, manifest: Manifest, variant: Variant, folder: Path, device: Device, library: EngineLibrary
    ) -> None:
        """Raises HostError if memory is short, or the library is missing or of another version; else BundleError."""
        record = variant.engine
        assert record is not None
        later = variant.build is not None and variant.build.version_compatible
        self._trt = trt = _import(manifest.name, record, library, later_versions=later)
        self.record, self._log = record, _log(trt)
        runtime = trt.Runtime(self._log)
        if later:
            runtime.engine_host_code_allowed = True  # the engine carries its own runtime (--engine-any-version)
        self._runtime = runtime  # must outlive the engine
        self._device = device
        engine = runtime.deserialize_cuda_engine((folder / record.path).read_bytes())
        if engine is None:
            raise self._failure(manifest, "cannot be opened")
        self._engine = engine
        self.tensors = self._read_tensors(manifest, engine)
        self._cache: Any = None
        self._kept = _cache_path(manifest, record)
        self.captures_itself = hasattr(trt, "CudaGraphStrategy")  # TensorRT-RTX
        self.context = self._make_context(engine)
        if self.context is None:
            raise self._failure(manifest, f"needs {engine.device_memory_size_v2:_} bytes beside its weights")

    def said(self) -> str:
        """The library's last error message."""
        return self._log.errors[-1][:_LONGEST] if self._log.errors else "the library gives no reason"

    def close(self) -> None:
        """Save the kernels compiled on this machine, then free the engine. No run may be in progress."""
        if self._cache is not None and self.context is not None:
            _write(self._kept, bytes(self._cache.serialize()))
        self.context = self._cache = self._engine = self._runtime = None

    def _failure(self, manifest: Manifest, what: str) -> HostError | BundleError:
        said = self.said()
        text = f"the engine of {manifest.name} {what}: {said}"
        if is_out_of_memory(said):
            return DeviceMemoryError(
                f"{text} ({self._device.free_bytes():_} bytes are free on GPU {self._device.index})",
                hint="Stop other programs on the GPU, or export with a smaller --engine-batch or --engine-tokens.",
            )
        return BundleError(text, hint="Run: edgecompress verify BUNDLE, or: edgecompress build BUNDLE --force")

    def _make_context(self, engine: Any) -> Any:
        trt = self._trt
        if not self.captures_itself:
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):  # absent on the first run
            self._cache.deserialize(self._kept.read_bytes())  # rejects a cache of another device or version
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def _read_tensors(self, manifest: Manifest, engine: Any) -> dict[str, Tensor]:
        trt, found = self._trt, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = engine.get_tensor_dtype(name).name
            if dtype not in _DTYPES:
                raise BundleError(
                    f"tensor '{name}' in the engine of {manifest.name} is {dtype}, which this version does not support",
                    hint="Export the student again with this version.",
                )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            found[name] = Tensor(
                name=name,
                dtype=_DTYPES[dtype],
                shape=tuple(engine.get_tensor_shape(name)),
                is_input=is_input,
                on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
                shares="" if is_input else _aliased(engine, name),
            )
        return found


def _aliased(engine: Any, name: str) -> str:
    """The input whose memory the output shares, or ""; TensorRT before 10.15 has none."""
    ask = getattr(engine, "get_aliased_input_tensor", None)
    return "" if ask is None else ask(name) or ""


def _import(name: str, record: EngineRecord, library: EngineLibrary, *, later_versions: bool) -> Any:
    """Import the package that runs the engine of the bundle ``name``. Raises HostError."""
    again = "rebuild the engine: edgecompress build BUNDLE --force"
    package, here = library.package, platform.system().lower()
    if here != record.os:
        raise HostError(
            f"the engine of {name} was built on {record.os}, but this machine runs {here}",
            hint=f"On this machine, {again}.",
        )
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise HostError(
            f"the engine of {name} needs {library.file}, which is not installed",
            hint=f"pip install {package}=={record.version}",
        ) from None
    if version != record.version and not (later_versions and _newer(version, record.version)):
        raise HostError(
            f"the engine of {name} was built by {package} {record.version}, but {version} is installed",
            hint=f"pip install {package}=={record.version}, or {again}",
        )
    try:
        return importlib.import_module(library.module)
    except Exception as error:  # a missing library raises OSError, a wrong one ImportError
        raise HostError(
            f"the package {package} cannot be loaded: {str(error).splitlines()[0][:_LONGEST]}",
            hint=f"Reinstall it: pip install --force-reinstall {package}=={record.version}",
        ) from error


def _newer(version: str, built: str) -> bool:
    """Whether ``version`` reads a version-compatible engine of ``built``: same major number, not older."""
    numbers, least = ([int(part) for part in text.split(".") if part.isdigit()] for text in (version, built))
    return numbers[:1] == least[:1] and numbers >= least


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the library's error messages and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


def _cache_path(manifest: Manifest, record: EngineRecord) -> Path:
    """The file for kernels compiled on this machine, named by the engine's content and version."""
    content = manifest.files[record.path].sha256
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(f"{content} {record.version}".encode()).hexdigest()
    return Path(root) / "edgecompress" / "engines" / f"{name}.cache"


def _write(path: Path, data: bytes) -> None:
    made: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            made = Path(file.name)
            file.write(data)
        os.replace(made, path)
    except OSError:  # a full disk or a read-only home only costs time
        if made is not None:
            made.unlink(missing_ok=True)
