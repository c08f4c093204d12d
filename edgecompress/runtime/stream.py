"""A stream of text pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecompress.errors import UsageError
from edgecompress.runtime.generation import Generation
from edgecompress.runtime.results import Generated, Piece, Statistics


class Stream:
    """An iterator of :class:`~edgecompress.runtime.results.Piece`, returned by ``Generator.stream``.

    Its KV cache is freed when the stream ends, is closed, leaves its ``with`` block, or is garbage-collected.

    Example:
        ```python
        with generator.stream("The sky is blue because", max_new_tokens=64) as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(stream.statistics.ttft_ms)
        ```
    """

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
        except BaseException:  # including StopIteration, the end of the text
            self.close()
            raise

    def cancel(self) -> None:
        """End the text early, from any thread. The reader receives the text held back so far, then the stream ends."""
        self._cancel.set()

    def close(self) -> None:
        """End the text now and free the KV cache. Call it from the thread that reads the stream."""
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
        """The whole new text. Raises UsageError before the stream has ended."""
        if self._result is None:
            raise UsageError("this stream has not ended", hint="Read it to the end, or close it.")
        return self._result

    @property
    def statistics(self) -> Statistics:
        """Statistics of the call. Raises UsageError before the stream has ended."""
        if self._statistics is None:
            raise UsageError("this stream has not ended", hint="Read it to the end, or close it.")
        return self._statistics
