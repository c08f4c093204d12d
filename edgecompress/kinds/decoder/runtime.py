"""The runtime for decoders: ``load`` a bundle, then call ``generate``, ``stream`` or ``session``."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Unpack, overload

from edgecompress.errors import UsageError
from edgecompress.kinds.decoder.options import closed_error, lookup_count, single_prompt, special_tokens
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.cache import cache_bytes
from edgecompress.runtime.chat import ChatTemplate
from edgecompress.runtime.decoder import Decoder
from edgecompress.runtime.generation import Generation, Row
from edgecompress.runtime.memory import check_available
from edgecompress.runtime.model import Cache
from edgecompress.runtime.prompts import (
    Batch,
    Options,
    Single,
    encode_prompt,
    new_token_limit,
    split_batch,
    stop_strings,
)
from edgecompress.runtime.prose import FIRST_TEXT
from edgecompress.runtime.results import Generated, Statistics
from edgecompress.runtime.sampling import Sampler, Sampling, check_seed, sampling_for
from edgecompress.runtime.stream import Stream
from edgecompress.runtime.text import Detokenizer, PromptTokenizer, ReasoningSplit, StopStrings, TextStream
from edgecompress.types.bundle import GenerationSettings

# A new cache's room for new tokens when max_new_tokens is not given. It doubles as needed.
_FIRST_NEW_TOKENS = 512


def open_bundle(source: OpenBundle) -> Generator:
    """Open the bundle. Raises HostError, UsageError, BundleError."""
    return Generator(source)


def first_call(model: Generator) -> None:
    """Generate one token."""
    model.generate(FIRST_TEXT, max_new_tokens=1, temperature=0.0)


def open_decoder(source: OpenBundle, settings: GenerationSettings) -> Decoder:
    """Open the decoder. Raises HostError if it cannot run on this machine, BundleError if it is not a decoder."""
    model = source.open_cached()
    try:
        return Decoder(model, settings)
    except BaseException:
        model.close()
        raise


class Generator:
    """A decoder bundle, opened by ``load``: generates text.

    All methods are thread-safe; each call has its own KV cache. Use it as a context manager, or call ``close``.
    A prompt is a text, a list of messages for the chat template, or a list of token ids.

    Attributes:
        manifest: The bundle's manifest.
        threads: Number of CPU threads.
        settings: Context length, special tokens and default sampling settings of the model.
        tokenizer: The model's tokenizer.

    Example:
        ```python
        from edgecompress.runtime import load

        with load("decoder.bundle") as generator:
            text = generator.generate("The sky is blue because", max_new_tokens=64, temperature=0.0)
            for piece in generator.stream([{"role": "user", "content": "Why is the sky blue?"}]):
                print(piece, end="", flush=True)
        ```
    """

    def __init__(self, source: OpenBundle) -> None:
        """Applications call ``load`` instead.

        Raises BundleError if the bundle is not a decoder, HostError if it cannot run on this machine or does not fit
        into memory.
        """
        manifest, folder = source.manifest, source.folder
        of_kind = read_settings(DecoderSettings, manifest)
        self.manifest, self.threads = manifest, source.threads
        self.settings = settings = of_kind.generation
        check_available(manifest.bytes, f"the bundle {folder.name}", "Free some memory, or export with fewer bits.")
        self._decoder: Decoder | None = open_decoder(source, settings)
        self.tokenizer = PromptTokenizer(folder / of_kind.text.tokenizer, settings.vocab_size)
        self._template: ChatTemplate | None = None
        if settings.chat_template is not None:
            self._template = ChatTemplate(folder / settings.chat_template, special_tokens(self.tokenizer, settings))
        self._lock = threading.Lock()
        self._running: set[Generation] = set()
        self._statistics: Statistics | None = None

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel running generations and free the model. Later calls raise UsageError."""
        decoder, self._decoder = self._decoder, None
        self.cancel()
        if decoder is not None:
            decoder.close()

    def cancel(self) -> None:
        """End every running generation early, from any thread. Their ``finish`` is ``"cancelled"``."""
        with self._lock:
            running = list(self._running)
        for generation in running:
            generation.cancel.set()

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts can be messages."""
        return self._template is not None

    @property
    def statistics(self) -> Statistics:
        """Statistics of the last finished call. Raises UsageError before the first."""
        if self._statistics is None:
            raise UsageError("no text has been generated yet", hint="Read the statistics after a text has ended.")
        return self._statistics

    def kv_cache_bytes(self, tokens: int, rows: int = 1) -> int:
        """Return the size in bytes of a KV cache for ``rows`` texts of ``tokens`` each, without allocating it."""
        return cache_bytes(self.decoder.tensors, rows, tokens)

    def token_ids(self, prompt: Single, **options: Unpack[Options]) -> list[int]:
        """Return the token ids of a prompt, special tokens included.

        Args:
            prompt: A text, messages or token ids.
            **options: Only ``template_variables`` is used.

        Raises:
            UsageError: The bundle is closed or the prompt is invalid.
        """
        return self._encode(prompt, 0, options.get("template_variables"))[0]

    @overload
    def generate(self, prompt: Single, **options: Unpack[Options]) -> Generated: ...
    @overload
    def generate(self, prompt: Batch, **options: Unpack[Options]) -> list[Generated]: ...
    def generate(self, prompt: Single | Batch, **options: Unpack[Options]) -> Generated | list[Generated]:
        """Generate the text that follows a prompt, or the texts for a list of prompts.

        Prompts of a list can have any lengths. They are prefilled one by one and decoded together. Prompt ``r`` of a
        list samples with the seed (seed, r).

        Args:
            prompt: A text, a list of messages such as ``{"role": "user", "content": "Hello"}``, token ids, or a list
                of any of these.
            **options: See ``Options``.

        Returns:
            The new text without the prompt: a ``str`` with details as attributes (see
            ``Generated``). For a list of prompts, a list in the same order.

        Raises:
            UsageError: The bundle is closed, or a prompt or an option is invalid.
            HostError: The KV cache does not fit into memory.
            BundleError: The model fails.
        """
        started = time.perf_counter()
        prompts, batched = split_batch(prompt)
        generation = self._generation(prompts, options, started, None)
        self._enter(generation)
        try:
            for _ in generation.pieces():
                pass
        finally:
            self._leave(generation)
        results = [row.result() for row in generation.rows]
        return results if batched else results[0]

    def stream(self, prompt: Single, **options: Unpack[Options]) -> Stream:
        """Generate text for one prompt and return its pieces as they are generated.

        Closing or dropping the stream ends the generation and frees its KV cache.

        Args:
            prompt: A text, messages or token ids.
            **options: See ``Options``.

        Returns:
            An iterator of pieces.

        Raises:
            UsageError: As ``generate``, when the stream is created and not at the first piece.
            HostError: The KV cache does not fit into memory.
        """
        started = time.perf_counter()
        generation = self._generation([single_prompt(prompt)], options, started, None)
        self._enter(generation)
        return Stream(generation, self._leave)

    def session(self, capacity_tokens: int | None = None) -> Session:
        """Open a conversation that keeps its KV cache between calls.

        The prefix that a prompt shares with the session's last text is not run again.

        Args:
            capacity_tokens: Allocate the whole cache now. By default it is allocated on the first call and doubles as
                needed.

        Raises:
            UsageError: The bundle is closed, or ``capacity_tokens`` is out of range.
            HostError: The KV cache does not fit into memory.
        """
        return Session(self, capacity_tokens)

    @property
    def decoder(self) -> Decoder:
        """The decoder model. Raises UsageError if the bundle is closed."""
        decoder = self._decoder
        if decoder is None:
            raise closed_error()
        return decoder

    def _enter(self, generation: Generation) -> None:
        with self._lock:
            self._running.add(generation)

    def _leave(self, generation: Generation) -> None:
        with self._lock:
            self._running.discard(generation)
        self._statistics = generation.statistics()

    def _encode(self, prompt: Single, index: int, variables: Mapping[str, Any] | None) -> tuple[list[int], bool]:
        if self._decoder is None:
            raise closed_error()
        return encode_prompt(
            prompt,
            index,
            tokenizer=self.tokenizer,
            template=self._template,
            settings=self.settings,
            variables=variables,
        )

    def _generation(
        self, prompts: Sequence[Single], options: Options, started: float, session: Session | None
    ) -> Generation:
        """Check and encode everything and allocate the cache, without running the model."""
        decoder = self.decoder
        unknown = sorted(set(options) - Options.__annotations__.keys())
        if unknown:
            raise UsageError(f"unknown option '{unknown[0]}'", hint=f"Options: {', '.join(Options.__annotations__)}.")
        sampling = sampling_for(
            self.settings,
            temperature=options.get("temperature"),
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            min_p=options.get("min_p"),
            repetition_penalty=options.get("repetition_penalty"),
        )
        lookup = lookup_count(options.get("lookup_tokens", 0), sampling, len(prompts))
        check_seed(options.get("seed"))
        rows = [self._row(prompt, index, options, sampling) for index, prompt in enumerate(prompts)]
        longest = max(row.prompt_tokens for row in rows)
        limit = max(row.limit_tokens for row in rows)
        wanted = limit if options.get("max_new_tokens") is not None else min(limit, longest + _FIRST_NEW_TOKENS)
        grow_to = limit
        if session is None:
            cache = decoder.make_cache(len(rows), wanted)
        else:
            cache, rows[0].cached = session.prepare(decoder, rows[0].ids, wanted)
            grow_to = self.settings.context_length_tokens
        return Generation(decoder, cache, rows, grow_to_tokens=grow_to, lookup_tokens=lookup, started=started)

    def _row(self, prompt: Single, index: int, options: Options, sampling: Sampling) -> Row:
        settings, tokenizer = self.settings, self.tokenizer
        ids, inside = self._encode(prompt, index, options.get("template_variables"))
        limit = new_token_limit(len(ids), options.get("max_new_tokens"), settings.context_length_tokens, index)
        stops = stop_strings(options.get("stop", ()))
        stop_ids = {i for stop in stops if (i := tokenizer.id_of(stop)) is not None} & tokenizer.special_ids
        tags = [tag for tag in (settings.think_start, settings.think_end) if tag]
        text = TextStream(
            Detokenizer(tokenizer, ids, tags),
            StopStrings(stops),
            ReasoningSplit(settings.think_start, settings.think_end, inside=inside),
        )
        return Row(
            index=index,
            slot=index,
            ids=ids,
            prompt_tokens=len(ids),
            limit_tokens=limit,
            sampler=Sampler(sampling, settings.vocab_size, options.get("seed"), index),
            text=text,
            stop_ids=frozenset(stop_ids),
        )


class Session:
    """A conversation that keeps its KV cache between calls, opened by ``session``.

    It generates one text at a time. The cache is freed when the session is closed or garbage-collected.

    Example:
        ```python
        with generator.session() as session:
            print(session.generate("Why is the sky blue?", max_new_tokens=64))
        ```
    """

    def __init__(self, generator: Generator, capacity_tokens: int | None = None) -> None:
        self._generator = generator
        self._lock = threading.Lock()
        self._busy = self._closed = False
        self._ids: list[int] = []  # tokens in the cache
        self._cache: Cache | None = None
        if capacity_tokens is not None:
            context = generator.settings.context_length_tokens
            if not 1 <= capacity_tokens <= context:
                raise UsageError(
                    f"capacity_tokens must be from 1 to the model's context of {context}, not {capacity_tokens}",
                    hint="Omit it to let the cache grow as needed.",
                )
            self._cache = generator.decoder.make_cache(1, capacity_tokens)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the cache. A running stream keeps it until the stream ends."""
        self._closed = True
        self._cache, self._ids = None, []

    @property
    def cached_tokens(self) -> int:
        """Number of tokens in the cache, which a prompt with the same prefix reuses."""
        return len(self._ids)

    def generate(self, prompt: Single, **options: Unpack[Options]) -> Generated:
        """Generate the text that ``stream`` yields; arguments and errors are the same."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def stream(self, prompt: Single, **options: Unpack[Options]) -> Stream:
        """Generate text as ``stream`` does.

        Args:
            prompt: The whole conversation so far, or any other prompt; only the part after the shared prefix is run.
            **options: See ``Options``.

        Raises:
            UsageError: The session is closed or already generating, or the prompt or an option is invalid.
            HostError: The KV cache does not fit into memory.
        """
        started = time.perf_counter()
        single = single_prompt(prompt)
        with self._lock:
            if self._closed or self._busy:
                state = "was closed" if self._closed else "is already generating a text"
                raise UsageError(f"this session {state}", hint="Open another session: generator.session().")
            self._busy = True
        try:
            generation = self._generator._generation([single], options, started, self)
        except BaseException:
            self._busy = False
            raise
        self._generator._enter(generation)
        return Stream(generation, self._leave)

    def prepare(self, decoder: Decoder, ids: Sequence[int], wanted_tokens: int) -> tuple[Cache, int]:
        """Return the cache with room for ``wanted_tokens``, and how many of ``ids`` it already holds."""
        # The last token of a prompt is always run: its logits give the first new token.
        pairs = enumerate(zip(ids, self._ids, strict=False))
        common = next((i for i, (new, old) in pairs if new != old), min(len(ids), len(self._ids)))
        common = min(common, len(ids) - 1)
        if self._cache is None:
            self._cache = decoder.make_cache(1, wanted_tokens)
        else:
            self._cache.ensure(wanted_tokens, common, decoder.settings.context_length_tokens)
        self._ids = self._ids[:common]
        return self._cache, common

    def _leave(self, generation: Generation) -> None:
        row = generation.rows[0]
        if not self._closed:
            self._ids = row.ids[: row.cached]
        self._busy = False
        self._generator._leave(generation)
