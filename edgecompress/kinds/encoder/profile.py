"""An encoder of texts as something that is timed. Text is made before, once; a call does what an application does.

On a GPU the copies to the device and back are part of "compute": they are on its stream, between the host's clock
readings. An engine's are timed apart, in calls of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edgecompress.errors import UsageError
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.runtime.batching import Tokens, pad
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.model import stage_timer
from edgecompress.runtime.prose import text_of
from edgecompress.runtime.shapes import compared_tokens, parse_texts, require_fits, token_feed, token_ids
from edgecompress.runtime.subject import Prepared, Side
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import CALL, GraphRun, Phase, Workload

COMPARED = "1x128"
_SHAPES = ((1, 16), (1, 128), (8, 128))  # texts, tokens of each


def default_workloads(manifest: Manifest) -> str:
    most = _most_tokens(manifest)
    return ",".join(dict.fromkeys(f"{batch}x{min(tokens, most)}" for batch, tokens in _SHAPES))


def parse(text: str, manifest: Manifest) -> Workload:
    """``8x128``: texts in a call times tokens of each. Raises UsageError."""
    return parse_texts(text)


def phases(manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
    sizes = {"batch": workload.batch, "sequence": workload.sizes["tokens"]}
    return {CALL: Phase(runs=(GraphRun(sizes=sizes),))}


def open_subject(source: OpenBundle) -> EncoderSubject:
    return EncoderSubject(source)


class EncoderSubject:
    """An encoder's bundle, opened."""

    def __init__(self, source: OpenBundle) -> None:
        self.manifest = source.manifest
        self._encoder = Encoder(source)
        self.threads = self._encoder.threads

    def close(self) -> None:
        self._encoder.close()

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a shape that the graph does not take."""
        tokenizer, model = self._encoder.tokenizer, self._encoder.model
        most = tokenizer.settings.max_length_tokens
        if not workload.requests and not 2 <= workload.sizes["tokens"] <= most:
            raise UsageError(
                f"no such shape for {self.manifest.name}: {workload.name}; a text has 2 to {most} tokens",
                hint=f"Give --shapes 1x{min(128, most)}, for example.",
            )
        calls = [self._texts(*request, most) for request in _requests(workload)]
        stages: dict[str, list[float]] = {"tokenize": [], "batch": [], "compute": []}
        clock, turn = time.perf_counter, 0
        padding, names = tokenizer.settings.pad_token_id, self._encoder.inputs

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
            outputs = model.run(feed)
            ended = clock()
            stages["tokenize"].append(tokenized - began)
            stages["batch"].append(batched - tokenized)
            stages["compute"].append(ended - batched)
            return outputs

        timed = stage_timer(model, call)
        return Prepared(
            call=call,
            stages=stages,
            items=workload.batch,
            phases={CALL: ("compute", 1)},
            parts={} if timed is None else {"compute": timed},
        )

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        """Raises UsageError for a trace."""
        if workload.requests:
            raise UsageError("offline takes a shape of texts", hint="Leave out the scenario for this workload.")
        length = workload.sizes["tokens"]
        texts = [text_of(length, self._ids, i) for i in range(min(items, 64))]
        found = self._encoder.tokenizer.encode(texts, prompt="", truncate=True)
        tokens = [_cut(found[i % len(found)], length) for i in range(items)]

        def call() -> object:
            return sum(len(batch) for batch, _ in self._encoder.run_tokens(tokens))

        return call

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        encoder, sizes = self._encoder, (workload.sizes["tokens"],) * workload.batch
        texts, lengths = self._texts(sizes, 0, encoder.tokenizer.settings.max_length_tokens)
        tokens = encoder.tokenizer.encode(texts, prompt="", truncate=True)
        made = pad([_cut(*each) for each in zip(tokens, lengths, strict=True)], encoder.tokenizer.settings.pad_token_id)
        feed = {name: made[name] for name in encoder.inputs}
        return {CALL: lambda: encoder.model.run(feed)}

    def _texts(self, request: Sequence[int] | str, number: int, most: int) -> tuple[list[str], list[int]]:
        """Texts of one call, and the tokens that each is cut to."""
        if isinstance(request, str):
            return [request], [most]
        lengths = [min(length, most) for length in request]
        return [text_of(length, self._ids, number + i) for i, length in enumerate(lengths)], lengths

    def _ids(self, text: str) -> list[int]:
        return self._encoder.tokenizer.encode([text], prompt="", truncate=True)[0].ids


def inputs(workload: Workload, manifests: Sequence[Manifest]) -> Feed:
    """Raises UsageError for what is no shape of texts, or is longer than one of the bundles takes."""
    batch, tokens = compared_tokens(workload)
    for manifest in manifests:
        require_fits(manifest.name, workload, _most_tokens(manifest))
    return token_feed(token_ids(batch, tokens))


def side(source: OpenBundle) -> Side:
    model = source.open()
    return Side(lambda feed: model.run(feed)[0], model.close)


def _most_tokens(manifest: Manifest) -> int:
    return read_settings(EncoderSettings, manifest).text.max_length_tokens


def _requests(workload: Workload) -> list[tuple[Sequence[int] | str, int]]:
    """The tokens of each text of a call, or its one text; and the number of the first, so that each is another one."""
    if not workload.requests:
        return [((workload.sizes["tokens"],) * workload.batch, 0)]
    return [(each if isinstance(each, str) else (each,), i) for i, each in enumerate(workload.requests)]


def _cut(tokens: Tokens, length: int) -> Tokens:
    """``length`` tokens of it, the last one, which ends a text, kept."""
    if len(tokens.ids) <= length:
        return tokens
    ids = [*tokens.ids[: length - 1], tokens.ids[-1]]
    return replace(tokens, ids=ids, type_ids=tokens.type_ids[:length])
