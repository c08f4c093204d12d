"""Times a decoder: a call prefills its prompts and decodes new tokens for each, greedily."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.kinds.decoder.runtime import Generator, open_decoder
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.cache import PAST
from edgecompress.runtime.cancellation import Cancellation
from edgecompress.runtime.decoder import read_prompt
from edgecompress.runtime.prose import text_of
from edgecompress.runtime.shapes import compared_tokens, parse_texts, require_fits, token_feed, token_ids
from edgecompress.runtime.subject import Prepared, Side, TokenClock
from edgecompress.types.arrays import Array, Feed
from edgecompress.types.bundle import GenerationSettings, Manifest
from edgecompress.types.workload import DEFAULT_NEW_TOKENS, GraphRun, Phase, Workload

COMPARED = "1x128"
PREFILL, DECODE = "prefill", "decode"
_PROMPTS = (128, 1024)  # tokens


def default_workloads(manifest: Manifest) -> str:
    most = _settings(manifest).context_length_tokens - DEFAULT_NEW_TOKENS
    return ",".join(dict.fromkeys(f"1x{max(1, min(tokens, most))}" for tokens in _PROMPTS))


def parse(text: str, manifest: Manifest) -> Workload:
    """Parse ``8x128``: prompts in a call, and tokens per prompt. Raises UsageError."""
    return parse_texts(text)


def phases(manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
    """Prefill of the prompts one by one, in chunks, then decode steps for all of them."""
    batch, tokens = workload.batch, workload.sizes["tokens"]
    chunk = _settings(manifest).prefill_chunk_tokens
    chunks = tuple(_run(manifest, 1, min(chunk, tokens - at), at) for at in range(0, tokens, chunk))
    return {
        PREFILL: Phase(runs=chunks * batch, tokens=batch * tokens),
        DECODE: Phase(runs=(_run(manifest, batch, 1, tokens),), tokens=batch),
    }


def _run(manifest: Manifest, batch: int, tokens: int, past: int) -> GraphRun:
    """A run of ``tokens`` new tokens per text, after ``past`` cached ones."""
    sizes = {"batch": batch, "tokens": tokens, "total_tokens": past + tokens, "wanted": 1, "capacity": past}
    # An engine's cache has a fixed capacity; a run reads only the part in use.
    fixed = {
        spec.name: (batch, int(spec.shape[1]), past, int(spec.shape[3]))
        for spec in manifest.variant().inputs
        if spec.name.startswith(PAST)
    }
    return GraphRun(sizes=sizes, shapes=fixed)


def open_subject(source: OpenBundle) -> DecoderSubject:
    return DecoderSubject(source)


class DecoderSubject:
    """An opened decoder bundle."""

    def __init__(self, source: OpenBundle) -> None:
        self.manifest = source.manifest
        self._generator = Generator(source)
        self.threads = self._generator.threads

    def close(self) -> None:
        self._generator.close()

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        raise UsageError("a decoder has no offline scenario", hint="Use a shape with a larger batch: --shapes 8x128.")

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a prompt that does not fit into the context with its new tokens."""
        decoder, tokenizer = self._generator.decoder, self._generator.tokenizer
        calls = self._prompts(workload, new_tokens)
        longest = max(len(ids) for rows in calls for ids in rows) + new_tokens
        batch = max(map(len, calls))
        cache = decoder.make_cache(batch, min(longest, decoder.settings.context_length_tokens))
        cancel, only = Cancellation(), np.zeros(1, dtype=np.int64)
        clock, turn = time.perf_counter, 0
        tokens_clock = TokenClock(new_tokens=new_tokens, prompt_tokens=sum(map(len, calls[0])))
        first, between, detokenize = tokens_clock.first, tokens_clock.between, list[float]()

        def call() -> object:
            nonlocal turn
            rows = calls[turn]
            turn = (turn + 1) % len(calls)
            began = clock()
            new = []
            for row, ids in enumerate(rows):
                new.append([int(read_prompt(decoder, cache, row, np.array(ids), cancel).argmax())])
                first.append(clock() - began)
            read = before = clock()
            past = np.array([len(ids) for ids in rows])
            for _ in range(new_tokens - 1):
                last = np.array([[tokens[-1]] for tokens in new])
                logits, _ = decoder.run(cache, 0, last, past, only, cancel)
                for row, tokens in enumerate(new):
                    tokens.append(int(logits[row, 0].argmax()))
                past = past + 1
                now = clock()
                between.append(now - before)
                before = now
            written = clock()
            texts = [tokenizer.decode(tokens) for tokens in new]
            ended = clock()
            tokens_clock.prefill.append(read - began)
            tokens_clock.decode.append(written - read)
            detokenize.append(ended - written)
            return texts

        return Prepared(
            call=call,
            stages={PREFILL: tokens_clock.prefill, DECODE: tokens_clock.decode, "detokenize": detokenize},
            items=batch,
            phases={PREFILL: (PREFILL, 1), DECODE: (DECODE, new_tokens - 1)},
            tokens=tokens_clock,
        )

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        decoder, cancel = self._generator.decoder, Cancellation()
        batch, tokens = workload.batch, workload.sizes["tokens"]
        cache = decoder.make_cache(batch, tokens + 1)
        prompts = token_ids(batch, tokens, decoder.settings.vocab_size)
        past, last = np.full(batch, tokens), np.zeros(1, dtype=np.int64)

        def read() -> None:
            for row in range(batch):
                read_prompt(decoder, cache, row, prompts[row], cancel)

        return {PREFILL: read, DECODE: lambda: decoder.run(cache, 0, prompts[:, :1], past, last, cancel)}

    def _prompts(self, workload: Workload, new_tokens: int) -> list[list[list[int]]]:
        """Token ids of each prompt of each call."""
        if not workload.requests:
            tokens = workload.sizes["tokens"]
            return [[self._prompt(tokens, i, workload, new_tokens) for i in range(workload.batch)]]
        return [
            [self._generator.token_ids(each) if isinstance(each, str) else self._prompt(each, i, workload, new_tokens)]
            for i, each in enumerate(workload.requests)
        ]

    def _prompt(self, tokens: int, number: int, workload: Workload, new_tokens: int) -> list[int]:
        context, encode = self._generator.settings.context_length_tokens, self._generator.token_ids
        if not 1 <= tokens <= context - new_tokens:
            raise UsageError(
                f"shape {workload.name} with {new_tokens} new tokens is too long for {self.manifest.name}: "
                f"its context is {context} tokens",
                hint="Use shorter prompts, or lower --new-tokens.",
            )
        return encode(text_of(tokens, encode, number))[:tokens]


def inputs(workload: Workload, manifests: Sequence[Manifest]) -> Feed:
    """Raises UsageError for a workload that is not a shape of texts, or longer than one of the contexts."""
    batch, tokens = compared_tokens(workload)
    for manifest in manifests:
        require_fits(manifest.name, workload, _settings(manifest).context_length_tokens)
    return token_feed(token_ids(batch, tokens, min(_settings(manifest).vocab_size for manifest in manifests)))


def side(source: OpenBundle) -> Side:
    """Run the prompts row by row; the output is the logits after each, float32 [B, V]."""
    decoder, cancel = open_decoder(source, _settings(source.manifest)), Cancellation()
    caches: dict[tuple[int, ...], Any] = {}

    def run(feed: Feed) -> Array:
        ids = feed["input_ids"]
        if ids.shape not in caches:
            caches.clear()
            caches[ids.shape] = decoder.make_cache(*ids.shape)
        cache = caches[ids.shape]
        # Copied, because the next run with this cache overwrites it.
        return np.stack([read_prompt(decoder, cache, row, ids[row], cancel).copy() for row in range(len(ids))])

    return Side(run, decoder.close)


def _settings(manifest: Manifest) -> GenerationSettings:
    return read_settings(DecoderSettings, manifest).generation
