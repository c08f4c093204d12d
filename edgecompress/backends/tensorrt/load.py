"""Opens an engine built with TensorRT. Not yet run on a GPU."""

from __future__ import annotations

from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.cuda.choice import open_device
from edgecompress.runtime.cuda.device import Device
from edgecompress.runtime.engine_file import EngineLibrary
from edgecompress.runtime.engine_models import CachedEngineModel, EngineModel, open_cached_engine, open_engine

LIBRARY = EngineLibrary(package="tensorrt", module="tensorrt", file="libnvinfer.so")
PARALLEL_SESSIONS = False  # a GPU runs one batch at a time


def open_model(source: OpenBundle, name: str, threads: int) -> EngineModel:
    return open_engine(source, name, LIBRARY)


def open_cached_model(source: OpenBundle, name: str, threads: int) -> CachedEngineModel:
    return open_cached_engine(source, name, LIBRARY)


def device_of(source: OpenBundle, name: str) -> Device:
    return open_device(source.manifest, source.variant(name), source.device)
