"""What a model is to whoever runs it, wherever it runs. A backend's ``load`` opens it, a kind's ``runtime`` runs it."""

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
    """Arrays in by name, arrays out in order. May be run from several threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        """The ``wanted`` outputs, all unless given. What the model has no input for is left out of the feed.

        Raises UsageError for shapes that it does not take, HostError.
        """

    def close(self) -> None: ...


@runtime_checkable
class StagedModel(Protocol):
    """A model whose runs have stages, such as copies to a device and back."""

    def timing(self) -> AbstractContextManager[Mapping[str, list[float]]]:
        """Within it the seconds of each stage of a run are added under its name; such a run takes longer."""


_TIMED_CALLS = 30


def stage_timer(model: Model, call: Callable[[], object]) -> Callable[[], Mapping[str, list[float]]] | None:
    """Runs ``call``, which runs the model, some times and gives the seconds of each stage; None if it has no stages."""
    if not isinstance(model, StagedModel):
        return None

    def timed() -> Mapping[str, list[float]]:
        with model.timing() as stages:
            for _ in range(_TIMED_CALLS):
                call()
            return stages

    return timed


class Cache(Protocol):
    """What a model keeps of several rows between runs, wherever it lies."""

    capacity_tokens: int
    bytes_copied: int

    @property
    def bytes(self) -> int: ...

    def ensure(self, tokens: int, used_tokens: int, limit_tokens: int) -> None: ...

    def move(self, source: int, target: int, tokens: int) -> None: ...

    def logits(self, batch: int, positions: int, vocab_size: int) -> FloatArray:
        """Memory of the host for an output [B, N, V], the same one each time as long as it fits."""


class CachedModel(Protocol):
    """A model that reads and writes a cache in place. May be run from several threads, a cache each."""

    tensors: tuple[Any, ...]  # of the cache
    names: frozenset[str]  # of its inputs, but for the cache's

    def make_cache(self, rows: int, capacity_tokens: int) -> Any:
        """Raises HostError where there is no memory for it, UsageError for more than it was built for."""

    def mask(self, totals: IntArray) -> IntArray:
        """Which tokens of the cache each row sees, int64 [B, S]: its first ``totals`` int64 [B]."""

    def run(self, cache: Any, first_row: int, feed: Feed, into: Mapping[str, Array], cancel: Cancellation) -> float:
        """Run rows ``first_row`` to ``first_row + B`` and write outputs ``into`` arrays; the seconds that it took.

        Raises CancelledError if ``cancel`` was set, UsageError for a shape that it does not take, HostError,
        BundleError if the model fails.
        """

    def close(self) -> None: ...


class Loader(Protocol):
    """``load.py`` of a backend."""

    PARALLEL_SESSIONS: bool
    """Whether batches run faster side by side, in sessions of one thread, than one after the other."""

    def open_model(self, source: Any, name: str, threads: int) -> Model:
        """A model of a bundle (:class:`edgecompress.runtime.bundle.OpenBundle`).

        Raises HostError if it cannot run here: nothing else runs in its place.
        """

    def open_cached_model(self, source: Any, name: str, threads: int) -> CachedModel: ...

    def device_of(self, source: Any, name: str) -> Device | None:
        """The GPU that the model runs on; None: it runs on none. Raises HostError if it is not here."""


class NodeTimer(Loader, Protocol):
    """Opens models whose nodes are timed one by one as they run; each model once."""

    runtime: str  # whose own nodes, which are not in the graph, are named after it

    def runs(self, name: str) -> Sequence[Mapping[str, float]]:
        """Of each run of the model, in order: the microseconds of each node. The model can be run no more."""


class TimingModule(Protocol):
    """``timing.py`` of a backend; there is none where it does not time nodes."""

    def node_timer(self, folder: Path) -> NodeTimer:
        """``folder``: for its files; it is there until the last ``runs``."""
