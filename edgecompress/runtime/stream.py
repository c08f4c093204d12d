"""A text on its way to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecompress.errors import UsageError
from edgecompress.runtime.generation import Generation
from edgecompress.runtime.results import Generated, Piece, Statistics


class Stream:
    """An iterator of pieces. Close it, leave its ``with`` block or drop it, and everything it took is freed."""

    def __init__(self, generation: Generation, leave: Callable[[Generation], None]) -> None:
        self._generation: Generation | None = generation
        self._cancel = generation.cancel
        self._leave = leave
        self._pieces = generation.pieces()
        self._result: Generated | None = None
        self._statistics: Statistics | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)[1]
        except BaseException:  # its end is a StopIteration
            self.close()
            raise

    def cancel(self) -> None:
        """End the text where it is, from any thread: its reader gets what was held back, and then the end."""
        self._cancel.set()

    def close(self) -> None:
        """End the text now; for the thread that reads it."""
        generation, self._generation = self._generation, None
        if generation is None:
            return
        self._pieces.close()
        for row in generation.rows:
            row.finish = row.finish or "cancelled"
        self._leave(generation)
        self._result, self._statistics = generation.rows[0].result(), generation.statistics()

    @property
    def result(self) -> Generated:
        """The whole new text, once the stream has ended. Raises UsageError before."""
        if self._result is None:
            raise UsageError("this stream has not ended yet", hint="Read it to its end, or close it.")
        return self._result

    @property
    def statistics(self) -> Statistics:
        """What it took, once the stream has ended. Raises UsageError before."""
        if self._statistics is None:
            raise UsageError("this stream has not ended yet", hint="Read it to its end, or close it.")
        return self._statistics
