"""Times a text encoder. Texts are prepared once; a call does what an application does.

On a GPU, "compute" includes the copies to and from the device, which run on the same stream. For engines, separate
calls time the copies.
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
_SHAPES = ((1, 16), (1, 128), (8, 128))  # texts, tokens per text


def default_workloads(manifest: Manifest) -> str:
    most = _most_tokens(manifest)
    return ",".join(dict.fromkeys(f"{batch}x{min(tokens, most)}" for batch, tokens in _SHAPES))


def parse(text: str, manifest: Manifest) -> Workload:
    """Parse ``8x128``: texts in a call, and tokens per text. Raises UsageError."""
    return parse_texts(text)


def phases(manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
    sizes = {"batch": workload.batch, "sequence": workload.sizes["tokens"]}
    return {CALL: Phase(runs=(GraphRun(sizes=sizes),))}


def open_subject(source: OpenBundle) -> EncoderSubject:
    return EncoderSubject(source)


class EncoderSubject:
    """An opened text encoder bundle."""

    def __init__(self, source: OpenBundle) -> None:
        self.manifest = source.manifest
        self._encoder = Encoder(source)
        self.threads = self._encoder.threads

    def close(self) -> None:
        self._encoder.close()

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a shape that the graph does not accept."""
        tokenizer, model = self._encoder.tokenizer, self._encoder.model
        most = tokenizer.settings.max_length_tokens
        if not workload.requests and not 2 <= workload.sizes["tokens"] <= most:
            raise UsageError(
                f"shape {workload.name} is out of range for {self.manifest.name}: a text has 2 to {most} tokens",
                hint=f"Give a valid one, such as --shapes 1x{min(128, most)}.",
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
            raise UsageError(
                f"the offline scenario needs a shape of texts, not {workload.name}", hint="Omit --scenario offline."
            )
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
        """The texts of one call, and the token count that each is cut to."""
        if isinstance(request, str):
            return [request], [most]
        lengths = [min(length, most) for length in request]
        return [text_of(length, self._ids, number + i) for i, length in enumerate(lengths)], lengths

    def _ids(self, text: str) -> list[int]:
        return self._encoder.tokenizer.encode([text], prompt="", truncate=True)[0].ids


def inputs(workload: Workload, manifests: Sequence[Manifest]) -> Feed:
    """Raises UsageError for a workload that is not a shape of texts, or too long for one of the bundles."""
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
    """For each call: its texts' token counts or its one text, and the first text's number, which makes texts differ."""
    if not workload.requests:
        return [((workload.sizes["tokens"],) * workload.batch, 0)]
    return [(each if isinstance(each, str) else (each,), i) for i, each in enumerate(workload.requests)]


def _cut(tokens: Tokens, length: int) -> Tokens:
    """Cut to ``length`` tokens, keeping the last one, the end-of-text token."""
    if len(tokens.ids) <= length:
        return tokens
    ids = [*tokens.ids[: length - 1], tokens.ids[-1]]
    return replace(tokens, ids=ids, type_ids=tokens.type_ids[:length])
