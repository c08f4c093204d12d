"""A bundle as something that is called: text in, result out, each stage of the way timed.

Text is made before, once; a call is what an application does for each request. On a GPU the copies to the device and
back are part of "compute": they are on its stream, between the host's clock readings. An engine's are timed apart, in
calls of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.profile.workload import Workload, text_of
from edgecompress.runtime.batching import Tokens, pad
from edgecompress.runtime.decoder import Cancellation
from edgecompress.runtime.models import EngineModel, read_prompt
from edgecompress.types.bundle import Manifest

_APART_CALLS = 30


@dataclass
class Prepared:
    """One workload. ``stages``: seconds of each, a call an entry; empty them before what is to be counted."""

    call: Callable[[], object]
    stages: dict[str, list[float]]
    texts: int  # of a call
    new_tokens: int = 0  # of a decoder's text
    first: list[float] = field(default_factory=list)  # seconds to the first new token
    between: list[float] = field(default_factory=list)  # seconds between new tokens
    prompt_tokens: int = 0  # of a call
    apart: Callable[[], dict[str, list[float]]] | None = None  # what "compute" consists of, timed in calls of its own

    def clear(self) -> None:
        for values in (*self.stages.values(), self.first, self.between):
            values.clear()


class EncoderSubject:
    """An encoder's bundle, opened."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None, device: int | None) -> None:
        self.manifest = manifest
        self._encoder = Encoder(manifest, folder, threads, device)
        self.threads = self._encoder.threads

    def close(self) -> None:
        self._encoder.close()

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a shape that the graph does not take."""
        if self.manifest.image is not None:
            return self._images(workload)
        tokenizer = self._encoder.tokenizer
        most = tokenizer.settings.max_length_tokens
        for tokens in workload.lengths:
            if not 2 <= tokens <= most:
                raise UsageError(
                    f"no such shape for {self.manifest.name}: {workload.name}; a text has 2 to {most} tokens",
                    hint=f"Give --shapes 1x{min(128, most)}, for example.",
                )

        requests = workload.requests or (workload.lengths,)
        calls: list[tuple[list[str], list[int]]] = []
        for number, request in enumerate(requests):
            if isinstance(request, str):
                calls.append(([request], [most]))
                continue
            lengths = [min(request, most)] if isinstance(request, int) else list(request)
            calls.append(([text_of(n, self._ids, number + i) for i, n in enumerate(lengths)], lengths))
        stages: dict[str, list[float]] = {"tokenize": [], "batch": [], "compute": []}
        clock, turn = time.perf_counter, 0
        padding, names, run = tokenizer.settings.pad_token_id, self._encoder._inputs, self._encoder.run

        def call() -> object:
            nonlocal turn
            texts, lengths = calls[turn]
            turn = (turn + 1) % len(calls)
            began = clock()
            tokens = tokenizer.encode(texts, prompt="", truncate=True)
            tokenized = clock()
            made = pad([_cut(each, length) for each, length in zip(tokens, lengths, strict=True)], padding)
            feed = {name: made[name] for name in names}
            batched = clock()
            outputs = run(feed)
            ended = clock()
            stages["tokenize"].append(tokenized - began)
            stages["batch"].append(batched - tokenized)
            stages["compute"].append(ended - batched)
            return outputs

        return Prepared(call=call, stages=stages, texts=len(calls[0][0]), apart=self._apart(call))

    def _apart(self, call: Callable[[], object]) -> Callable[[], dict[str, list[float]]] | None:
        """Of an engine: copies to the device, what it computes, and copies back."""
        model = self._encoder._model
        if not isinstance(model, EngineModel):
            return None

        def timed() -> dict[str, list[float]]:
            with model.runner.timing() as stages:
                for _ in range(_APART_CALLS):
                    call()
                return stages

        return timed

    def offline(self, workload: Workload, texts: int) -> Callable[[], object]:
        """One call of the runtime's own batching over many texts of the workload's lengths."""
        if self.manifest.image is not None or not workload.lengths:
            raise UsageError("offline takes a shape of texts", hint="Leave out the scenario for this workload.")
        tokenizer = self._encoder.tokenizer
        length = workload.lengths[0]

        found = tokenizer.encode(
            [text_of(length, self._ids, i) for i in range(min(texts, 64))], prompt="", truncate=True
        )
        tokens = [_cut(found[i % len(found)], length) for i in range(texts)]

        def call() -> object:
            return sum(len(batch) for batch, _ in self._encoder.run_tokens(tokens))

        return call

    def _ids(self, text: str) -> list[int]:
        return self._encoder.tokenizer.encode([text], prompt="", truncate=True)[0].ids

    def _images(self, workload: Workload) -> Prepared:
        image = self.manifest.image
        assert image is not None
        if not workload.lengths or any(workload.lengths):
            raise UsageError(
                f"no such shape for {self.manifest.name}: {workload.name}; images have no tokens",
                hint="Give --shapes 1x0,8x0: images times 0.",
            )
        pixels = np.random.default_rng(0).standard_normal((workload.batch, 3, image.height, image.width))
        feed = {"pixel_values": pixels.astype(np.float32)}
        stages: dict[str, list[float]] = {"compute": []}

        def call() -> object:
            began = time.perf_counter()
            outputs = self._encoder.run(feed)
            stages["compute"].append(time.perf_counter() - began)
            return outputs

        return Prepared(call=call, stages=stages, texts=workload.batch, apart=self._apart(call))


class DecoderSubject:
    """A decoder's bundle, opened. A call reads its prompts and writes ``new_tokens`` to each, the likeliest."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None, device: int | None) -> None:
        self.manifest = manifest
        self._generator = Generator(manifest, folder, threads, device)
        self.threads = self._generator.threads

    def close(self) -> None:
        self._generator.close()

    def offline(self, workload: Workload, texts: int) -> Callable[[], object]:
        raise UsageError("a decoder has no offline scenario here", hint="Give a shape with a larger batch: 8x128.")

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a prompt that is longer than the context, with its new tokens."""
        generator, decoder = self._generator, self._generator._open()
        context = decoder.settings.context_length_tokens
        requests = workload.requests or (workload.lengths,)
        calls: list[list[list[int]]] = []
        for number, request in enumerate(requests):
            if isinstance(request, str):
                calls.append([generator.token_ids(request)])
                continue
            lengths = [request] if isinstance(request, int) else list(request)
            rows = []
            for i, length in enumerate(lengths):
                if not 1 <= length <= context - new_tokens:
                    raise UsageError(
                        f"no such shape for {self.manifest.name}: {workload.name} with {new_tokens} new tokens; "
                        f"its context is {context}",
                        hint="Give shorter prompts, or fewer --new-tokens.",
                    )
                rows.append(generator.token_ids(text_of(length, generator.token_ids, number + i))[:length])
            calls.append(rows)
        longest = max(len(ids) for rows in calls for ids in rows) + new_tokens
        batch = max(map(len, calls))
        cache, cancel = decoder.make_cache(batch, min(longest, context)), Cancellation()
        stages: dict[str, list[float]] = {"prefill": [], "decode": [], "detokenize": []}
        first: list[float] = []
        between: list[float] = []
        clock, only, turn = time.perf_counter, np.zeros(1, dtype=np.int64), 0
        tokenizer = generator._tokenizer

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
            stages["prefill"].append(read - began)
            stages["decode"].append(written - read)
            stages["detokenize"].append(ended - written)
            return texts

        return Prepared(
            call=call,
            stages=stages,
            texts=batch,
            new_tokens=new_tokens,
            first=first,
            between=between,
            prompt_tokens=sum(map(len, calls[0])),
        )


Subject = EncoderSubject | DecoderSubject


def open_subject(manifest: Manifest, folder: Path, threads: int | None, device: int | None) -> Subject:
    """Raises what :func:`edgecompress.load` raises."""
    if manifest.generation is not None:
        return DecoderSubject(manifest, folder, threads, device)
    return EncoderSubject(manifest, folder, threads, device)


def _cut(tokens: Tokens, length: int) -> Tokens:
    """``length`` tokens of it, the last one, which ends a text, kept."""
    if len(tokens.ids) <= length:
        return tokens
    ids = [*tokens.ids[: length - 1], tokens.ids[-1]]
    return replace(tokens, ids=ids, type_ids=tokens.type_ids[:length])
