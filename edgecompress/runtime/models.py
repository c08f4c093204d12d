"""What a bundle's model is opened as: a session of ONNX Runtime, on the CPU or a GPU, or an engine on its GPU.

What a GPU takes is imported where a bundle for one is opened: a start on a CPU does not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecompress.errors import HostError, UsageError
from edgecompress.runtime.session import CUDA_PROVIDER, make_session
from edgecompress.types.bundle import GenerationSettings, Manifest

if TYPE_CHECKING:
    from edgecompress.runtime.cuda.device import Device
    from edgecompress.runtime.decoder import Cancellation, FloatArray, IntArray
    from edgecompress.runtime.engine_runner import EngineRunner

Array = npt.NDArray[Any]


class Model(Protocol):
    """Arrays of the manifest's inputs in, arrays of its outputs out. May be run from several threads."""

    inputs: tuple[str, ...]

    def run(self, feed: Mapping[str, Array]) -> list[Array]: ...

    def close(self) -> None: ...


class Cache(Protocol):
    """Keys and values of several texts, wherever they lie."""

    capacity_tokens: int
    bytes_copied: int

    @property
    def bytes(self) -> int: ...

    def ensure(self, tokens: int, used_tokens: int, limit_tokens: int) -> None: ...

    def move(self, source: int, target: int, tokens: int) -> None: ...


class AnyDecoder(Protocol):
    """A decoder, wherever it runs; the cache is one that it made."""

    settings: GenerationSettings
    tensors: Any

    def make_cache(self, rows: int, capacity_tokens: int) -> Any: ...

    def run(
        self, cache: Any, first_row: int, ids: IntArray, past: IntArray, wanted: IntArray, cancel: Cancellation
    ) -> tuple[FloatArray, float]: ...

    def close(self) -> None: ...


def read_prompt(decoder: AnyDecoder, cache: Any, row: int, ids: IntArray, cancel: Cancellation) -> FloatArray:
    """Run ``ids`` int64 [T] into an empty row of the cache, in chunks; the logits behind them, float32 [V].

    They lie in memory that the cache's next run writes over. Raises as :meth:`AnyDecoder.run`.
    """
    chunk = decoder.settings.prefill_chunk_tokens
    for start in range(0, len(ids), chunk):
        part = ids[None, start : start + chunk]
        last = np.array([part.shape[1] - 1], dtype=np.int64)
        logits, _ = decoder.run(cache, row, part, np.array([start], dtype=np.int64), last, cancel)
    found: FloatArray = logits[0, 0]
    return found


class SessionModel:
    """A session of ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(value.name for value in session.get_inputs())

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(None, {name: feed[name] for name in self.inputs})
        return outputs

    def close(self) -> None:
        """Nothing is left to do: the session is freed when the last run that holds it has ended."""


class EngineModel:
    """An engine of TensorRT or TensorRT-RTX."""

    def __init__(self, runner: EngineRunner, manifest: Manifest) -> None:
        self.runner = runner
        self._outputs = [output.name for output in manifest.outputs]
        self.inputs = tuple(tensor.name for tensor in runner.inputs)

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Raises UsageError for shapes that the engine was not built for, HostError."""
        found = self.runner.run({name: feed[name] for name in self.inputs})
        return [found[name] for name in self._outputs]

    def close(self) -> None:
        self.runner.close()


def on_gpu(manifest: Manifest) -> bool:
    """Whether the bundle runs on a GPU, and on nothing else."""
    engine = manifest.engine is not None or manifest.build is not None
    return engine or CUDA_PROVIDER in manifest.target.providers


def open_model(manifest: Manifest, folder: Path, threads: int, device: int | None) -> Model:
    """An encoder's model. Raises HostError if it cannot run here: nothing else runs in its place."""
    gpu = _device(manifest, device)
    if manifest.engine is not None:
        assert gpu is not None
        return EngineModel(_runner(manifest, folder, gpu), manifest)
    return SessionModel(make_session(folder, manifest, threads, gpu=None if gpu is None else gpu.index))


def open_decoder(manifest: Manifest, folder: Path, threads: int, device: int | None) -> AnyDecoder:
    """A decoder's model. Raises HostError if it cannot run here, BundleError if it is no decoder."""
    from edgecompress.runtime.decoder import Decoder

    settings = manifest.generation
    assert settings is not None
    gpu = _device(manifest, device)
    if manifest.engine is not None:
        from edgecompress.runtime.engine_decoder import EngineDecoder

        assert gpu is not None
        runner = _runner(manifest, folder, gpu)
        try:
            return EngineDecoder(runner, settings, manifest.name)
        except BaseException:
            runner.close()
            raise
    index = None if gpu is None else gpu.index
    session = make_session(folder, manifest, threads, huge_pages=gpu is None, gpu=index)
    return Decoder(session, settings, manifest.model, gpu)


def _runner(manifest: Manifest, folder: Path, gpu: Device) -> EngineRunner:
    from edgecompress.runtime.engine_file import EngineFile
    from edgecompress.runtime.engine_runner import EngineRunner

    return EngineRunner(EngineFile(manifest, folder, gpu), gpu)


def _device(manifest: Manifest, wanted: int | None) -> Device | None:
    if not on_gpu(manifest):
        if wanted is not None:
            raise UsageError(
                f"{manifest.name} is for {manifest.target.name}, a CPU: it runs on no GPU",
                hint="Leave out the device, or export the student for a GPU target.",
            )
        return None
    if manifest.engine is None and manifest.build is not None:
        raise HostError(
            f"the engine of {manifest.name} is not built yet",
            hint="`edgecompress build` does it, on the device. The graph beside the plan is never run in its place.",
        )
    from edgecompress.runtime.cuda.choice import open_device

    return open_device(manifest, wanted)
