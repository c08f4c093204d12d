"""What a model is to whoever runs it, wherever it runs. A backend's ``load`` opens it, a kind's ``runtime`` runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgecompress.runtime.cancellation import Cancellation
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
