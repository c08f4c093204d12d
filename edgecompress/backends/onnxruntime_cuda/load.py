"""Opens a graph with ONNX Runtime's CUDA provider. Not yet run on a GPU."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from edgecompress.backends.onnxruntime_cuda.provider import CUDA_PROVIDER, RECORD_PLACES, cuda_provider, require_on_gpu
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.cache import CacheTensor
from edgecompress.runtime.cuda.choice import open_device
from edgecompress.runtime.cuda.device import Device
from edgecompress.runtime.device_cache import DeviceCache
from edgecompress.runtime.session import make_session
from edgecompress.runtime.session_models import CachedSessionModel, SessionModel

PARALLEL_SESSIONS = False  # a GPU runs one batch at a time


def open_model(source: OpenBundle, name: str, threads: int) -> SessionModel:
    session, _ = _open(source, name, threads)
    return SessionModel(session, source.variant(name))


def open_cached_model(source: OpenBundle, name: str, threads: int) -> CachedSessionModel:
    session, device = _open(source, name, threads)

    def make_cache(tensors: tuple[CacheTensor, ...], rows: int, capacity_tokens: int) -> DeviceCache:
        return DeviceCache(device, tensors, rows, capacity_tokens, grows=True)

    return CachedSessionModel(session, source.variant(name).path, make_cache)


def device_of(source: OpenBundle, name: str) -> Device:
    return open_device(source.manifest, source.variant(name), source.device)


def _open(source: OpenBundle, name: str, threads: int) -> tuple[ort.InferenceSession, Device]:
    """Raises HostError if the GPU is missing, or if ONNX Runtime placed nodes on the CPU."""
    variant = source.variant(name)
    device = device_of(source, name)
    providers: list[Any] = [cuda_provider(device.index) if p == CUDA_PROVIDER else p for p in variant.providers]
    session = make_session(source.folder, variant, threads, providers=providers, config=dict([RECORD_PLACES]))
    require_on_gpu(session)
    return session, device
