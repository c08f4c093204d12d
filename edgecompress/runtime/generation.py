"""The generation loop: prefill, then decode, for one text or several at once."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.runtime.cancellation import Cancellation, CancelledError
from edgecompress.runtime.decoder import Decoder
from edgecompress.runtime.lookup import PromptLookup
from edgecompress.runtime.model import Cache
from edgecompress.runtime.results import Finish, Generated, Meter, Piece, Statistics
from edgecompress.runtime.sampling import Sampler
from edgecompress.runtime.text import TextStream
from edgecompress.types.arrays import FloatArray


@dataclass(kw_only=True, eq=False)
class Row:
    """One text that is being generated."""

    index: int = 0  # position among the caller's prompts
    ids: list[int]  # prompt tokens, then new tokens
    prompt_tokens: int
    limit_tokens: int  # prompt and new tokens together
    sampler: Sampler
    text: TextStream
    stop_ids: frozenset[int] = frozenset()  # stop strings that are special tokens, which decode to no text
    cached: int = 0  # how many of ids are in the cache; after prefill, all but the last
    slot: int = 0  # row of the cache
    finish: Finish | None = None

    def result(self) -> Generated:
        return Generated(
            self.text.text,
            answer=self.text.of_kind("answer"),
            reasoning=self.text.of_kind("reasoning"),
            token_ids=tuple(self.ids[self.prompt_tokens :]),
            finish=self.finish or "cancelled",
        )


class Generation:
    """The work of one call. Iterate :meth:`pieces`; the owner frees the cache however the iteration ends."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        rows: Sequence[Row],
        *,
        grow_to_tokens: int,
        lookup_tokens: int,
        started: float,
    ) -> None:
        """``rows`` are in slot order, 0, 1, …; ``started`` is time.perf_counter() at the start of the call."""
        self.rows, self.cache = list(rows), cache
        self.cancel = Cancellation()
        self._decoder = decoder
        self._eos = frozenset(decoder.settings.eos_token_ids)
        self._grow_to = grow_to_tokens
        self._meter = Meter(started=started, copied_before=cache.bytes_copied)
        self._meter.reused_tokens = sum(row.cached for row in rows)
        self._lookup: PromptLookup | None = None
        if lookup_tokens:
            self._lookup = PromptLookup(lookup_tokens, self.rows[0].ids)
        self._made = time.perf_counter()

    def pieces(self) -> Generator[tuple[int, Piece], None, None]:
        """Yield (row index, piece) as soon as text is final. A cancelled generation flushes its text and ends early."""
        meter = self._meter
        meter.suspended = time.perf_counter() - self._made
        try:
            for index, piece in self._steps():
                left = time.perf_counter()
                try:
                    yield index, piece
                finally:
                    meter.suspended += time.perf_counter() - left
        finally:
            for row in self.rows:
                if row.finish is None:
                    row.finish = "cancelled"
            meter.ended = time.perf_counter() - meter.suspended

    def _steps(self) -> Iterator[tuple[int, Piece]]:
        try:
            for row in self.rows:
                token = row.sampler.choose(self._prefill(row))
                if not self._meter.first_token:
                    self._meter.first_token = self._now()
                for piece in self._take(row, token):
                    yield row.index, piece
            self._meter.prefill_ended = self._now()
            active = [row for row in self.rows if row.finish is None]
            self._close_gaps(active)
            while active:
                taken = self._verify(active[0]) if self._lookup else self._decode(active)
                for row, pieces in taken:
                    for piece in pieces:
                        yield row.index, piece
                if any(row.finish for row in active):
                    active = [row for row in active if row.finish is None]
                    self._close_gaps(active)
        except CancelledError:
            for row in self.rows:
                if row.finish is None:
                    row.finish = "cancelled"
                    for piece in row.text.finish():
                        yield row.index, piece

    def _prefill(self, row: Row) -> FloatArray:
        """Run the prompt in chunks and return the logits of its last position, float32 [V]."""
        chunk = self._decoder.settings.prefill_chunk_tokens
        row.sampler.observe(row.ids)
        logits: FloatArray | None = None
        while row.cached < len(row.ids):
            end = min(row.cached + chunk, len(row.ids))
            self._ensure(end)
            ids = np.array([row.ids[row.cached : end]], dtype=np.int64)
            last = np.array([ids.shape[1] - 1], dtype=np.int64)
            past = np.array([row.cached], dtype=np.int64)
            logits, seconds = self._decoder.run(self.cache, row.slot, ids, past, last, self.cancel)
            self._meter.prefill_s += seconds
            self._meter.prefill_runs += 1
            self._meter.prefilled_tokens += end - row.cached
            row.cached = end
        assert logits is not None, "a prompt has a token that is not in the cache"
        last_logits: FloatArray = logits[0, 0]
        return last_logits

    def _decode(self, active: list[Row]) -> list[tuple[Row, list[Piece]]]:
        """Generate one token for each row in a single run."""
        past = np.array([row.cached for row in active], dtype=np.int64)
        self._ensure(int(past.max()) + 1)
        ids = np.array([[row.ids[-1]] for row in active], dtype=np.int64)
        only = np.zeros(1, dtype=np.int64)
        logits, seconds = self._decoder.run(self.cache, 0, ids, past, only, self.cancel)
        self._meter.decode_run_s += seconds
        self._meter.decode_runs += 1
        taken = []
        for index, row in enumerate(active):
            row.cached += 1
            taken.append((row, self._take(row, row.sampler.choose(logits[index, 0]))))
            self._meter.decoded_tokens += 1
        return taken

    def _verify(self, row: Row) -> list[tuple[Row, list[Piece]]]:
        """Run the last token and a draft; keep the longest prefix of the draft that the model agrees with."""
        assert self._lookup is not None
        draft = self._lookup.draft(row.limit_tokens - len(row.ids) - 1)
        ids = np.array([[row.ids[-1], *draft]], dtype=np.int64)
        past, width = row.cached, ids.shape[1]
        self._ensure(past + width)
        positions = np.arange(width, dtype=np.int64)
        logits, seconds = self._decoder.run(
            self.cache, row.slot, ids, np.array([past], dtype=np.int64), positions, self.cancel
        )
        self._meter.decode_run_s += seconds
        self._meter.decode_runs += 1
        pieces: list[Piece] = []
        accepted = 0
        for position in range(width):
            token = row.sampler.choose(logits[0, position])
            pieces += self._take(row, token)
            self._meter.decoded_tokens += 1
            # All tokens but the newest are in the cache. Entries of rejected draft tokens are overwritten later.
            row.cached = len(row.ids) - 1
            self._lookup.add(token)
            if row.finish is not None or position == len(draft) or token != draft[position]:
                break
            accepted += 1
        self._lookup.learn(len(draft), accepted, seconds)
        if draft:
            self._meter.drafted_tokens += len(draft)
            self._meter.accepted_tokens += accepted
        return [(row, pieces)]

    def _take(self, row: Row, token: int) -> list[Piece]:
        """Append a token to the row, and end the row if that token ends its text."""
        row.ids.append(token)
        row.sampler.observe((token,))
        pieces: list[Piece] = []
        if token in self._eos:
            row.finish = "eos"
        elif token in row.stop_ids:
            row.finish = "stop"
        else:
            pieces = row.text.push(token)
            if row.text.stopped:
                row.finish = "stop"
            elif len(row.ids) >= row.limit_tokens:
                row.finish = "length"
        if row.finish is not None:
            pieces += row.text.finish()
            if row.text.stopped:
                row.finish = "stop"
        return pieces

    def _close_gaps(self, active: list[Row]) -> None:
        """Move unfinished rows to the first slots, so that a run computes nothing for finished ones."""
        free = sorted(set(range(len(active))) - {row.slot for row in active})
        for row in active:
            if row.slot >= len(active):
                target = free.pop()
                self.cache.move(row.slot, target, row.cached)
                row.slot = target
        active.sort(key=lambda row: row.slot)

    def _ensure(self, tokens: int) -> None:
        used = max(row.cached for row in self.rows)
        self.cache.ensure(tokens, used, self._grow_to)

    def _now(self) -> float:
        """Seconds, not counting the time in which the reader of a stream holds the generator."""
        return time.perf_counter() - self._meter.suspended

    def statistics(self) -> Statistics:
        """Statistics so far; complete once :meth:`pieces` has ended."""
        meter = self._meter
        ended = meter.ended or self._now()
        decode_s = max(ended - meter.prefill_ended, 0.0) if meter.prefill_ended else 0.0
        new = sum(len(row.ids) - row.prompt_tokens for row in self.rows)
        outside = max(decode_s - meter.decode_run_s, 0.0) if meter.decode_runs else 0.0
        copied = self.cache.bytes_copied - meter.copied_before
        return Statistics(
            prompt_tokens=sum(row.prompt_tokens for row in self.rows),
            reused_tokens=meter.reused_tokens,
            new_tokens=new,
            ttft_ms=(meter.first_token - meter.started) * 1e3 if meter.first_token else 0.0,
            prefill_tokens_per_s=meter.prefilled_tokens / meter.prefill_s if meter.prefill_s else 0.0,
            decode_tokens_per_s=meter.decoded_tokens / decode_s if decode_s and meter.decoded_tokens else 0.0,
            prefill_runs=meter.prefill_runs,
            decode_runs=meter.decode_runs,
            outside_run_ms=outside * 1e3,
            outside_run_share=outside / decode_s if decode_s else 0.0,
            drafted_tokens=meter.drafted_tokens,
            accepted_tokens=meter.accepted_tokens,
            kv_cache_dtype=self._decoder.settings.kv_dtype,
            kv_cache_bytes=self.cache.bytes,
            kv_cache_tokens=self.cache.capacity_tokens,
            bytes_copied=copied,
            bytes_copied_per_token=copied / new if new else 0.0,
            finish=tuple(row.finish or "cancelled" for row in self.rows),
        )
