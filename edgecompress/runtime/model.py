"""The interface of a model on any backend. A backend's ``load`` module opens it, a kind's ``runtime`` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgecompress.runtime.cancellation import Cancellation
from edgecompress.runtime.cuda.device import Device
from edgecompress.types.arrays import Array, Feed, FloatArray, IntArray
from edgecompress.types.bundle import TensorSpec


class Model(Protocol):
    """Takes arrays by name and returns arrays in order. Thread-safe."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        """Return the ``wanted`` outputs, by default all. Entries of ``feed`` that are not model inputs are ignored.

        Raises UsageError for shapes that the model does not accept, HostError.
        """

    def close(self) -> None: ...


@runtime_checkable
class StagedModel(Protocol):
    """A model whose runs have stages, such as copies to and from a device."""

    def timing(self) -> AbstractContextManager[Mapping[str, list[float]]]:
        """Time the stages of runs in this context; yields seconds by stage name. Timed runs take longer."""


_TIMED_CALLS = 30


def stage_timer(model: Model, call: Callable[[], object]) -> Callable[[], Mapping[str, list[float]]] | None:
    """Return a function that repeats ``call`` and returns seconds per stage; None if the model has no stages."""
    if not isinstance(model, StagedModel):
        return None

    def timed() -> Mapping[str, list[float]]:
        with model.timing() as stages:
            for _ in range(_TIMED_CALLS):
                call()
            return stages

    return timed


class Cache(Protocol):
    """The KV cache of several rows, in host or device memory."""

    capacity_tokens: int
    bytes_copied: int

    @property
    def bytes(self) -> int: ...

    def ensure(self, tokens: int, used_tokens: int, limit_tokens: int) -> None: ...

    def move(self, source: int, target: int, tokens: int) -> None: ...

    def logits(self, batch: int, positions: int, vocab_size: int) -> FloatArray:
        """Host memory for an output [B, N, V], reused between calls while it is large enough."""


class CachedModel(Protocol):
    """A model that updates a KV cache in place. Thread-safe if each thread has its own cache."""

    tensors: tuple[Any, ...]  # of the cache
    names: frozenset[str]  # of the inputs that are not cache tensors

    def make_cache(self, rows: int, capacity_tokens: int) -> Any:
        """Raises HostError if memory is short, UsageError for more rows or tokens than the model was built for."""

    def mask(self, totals: IntArray) -> IntArray:
        """Return the attention mask int64 [B, S] in which row b sees its first ``totals[b]`` tokens, int64 [B]."""

    def run(self, cache: Any, first_row: int, feed: Feed, into: Mapping[str, Array], cancel: Cancellation) -> float:
        """Run cache rows ``first_row`` to ``first_row + B``; write outputs ``into`` arrays; return the seconds taken.

        Raises CancelledError if ``cancel`` was set, UsageError for a shape that the model does not accept, HostError,
        BundleError if the model fails.
        """

    def close(self) -> None: ...


class Loader(Protocol):
    """A backend's ``load`` module."""

    PARALLEL_SESSIONS: bool
    """Whether batches run faster in parallel, in single-threaded sessions, than one after the other."""

    def open_model(self, source: Any, name: str, threads: int) -> Model:
        """Open a model of a bundle (:class:`edgecompress.runtime.bundle.OpenBundle`).

        Raises HostError if it cannot run on this machine; there is no fallback.
        """

    def open_cached_model(self, source: Any, name: str, threads: int) -> CachedModel: ...

    def device_of(self, source: Any, name: str) -> Device | None:
        """The model's GPU, or None for a CPU model. Raises HostError if this machine does not have it."""


class NodeTimer(Loader, Protocol):
    """Opens models that time each of their nodes. Each model can be opened once."""

    runtime: str  # the runtime's name, a prefix for nodes that it adds to the graph

    def runs(self, name: str) -> Sequence[Mapping[str, float]]:
        """Return node -> microseconds for each run, in order. The model cannot run again after this."""


class TimingModule(Protocol):
    """A backend's optional ``timing`` module, for backends that can time nodes."""

    def node_timer(self, folder: Path) -> NodeTimer:
        """``folder`` holds the timer's files and must exist until the last call of ``runs``."""
