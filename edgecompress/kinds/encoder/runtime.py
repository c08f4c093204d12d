"""The runtime for encoders of texts: ``load`` a bundle, then call ``encode`` or ``predict``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import UsageError
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.runtime.batching import Text, TextTokenizer, Tokens, pad, plan_batches
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.lanes import Lanes
from edgecompress.runtime.model import Model
from edgecompress.runtime.prose import FIRST_TEXT
from edgecompress.runtime.scores import check_counts
from edgecompress.types.arrays import FloatArray
from edgecompress.types.bundle import Variant

# Texts that are tokenized and sorted together. Bounds memory, however many texts there are.
_WINDOW = 4096


def open_bundle(source: OpenBundle) -> Encoder:
    """Open the bundle. Raises HostError, UsageError, BundleError."""
    return Encoder(source)


def first_call(model: Encoder) -> None:
    """Run one text."""
    for _ in model.batches([FIRST_TEXT], truncate=True):
        pass


class Encoder:
    """A bundle for texts, opened by ``load``: embeddings, labels, scores and answers.

    All methods are thread-safe. Use it as a context manager, or call ``close``.

    Attributes:
        manifest: The bundle's manifest; ``manifest.task`` is the task, such as ``"sentence-similarity"``.
        threads: Number of CPU threads.
        settings: Labels, prompts and token limits of the model.
        inputs: Names of the model's inputs.

    Example:
        ```python
        from edgecompress.runtime import load

        with load("minilm.bundle") as encoder:
            vectors = encoder.encode(["a sentence", "another"])  # float32 [2, 384]
        ```
    """

    def __init__(self, source: OpenBundle) -> None:
        """Applications call ``load`` instead. Raises HostError, UsageError, BundleError."""
        self.manifest, self.threads = source.manifest, source.threads
        self.settings = read_settings(EncoderSettings, source.manifest)
        self._variant = source.variant()
        self._model: Model | None = source.open()
        self._lanes = Lanes(lambda: source.open(threads=1), source.lanes)
        self.inputs = tuple(spec.name for spec in self._model.inputs)
        self._most_rows, most_tokens = _largest(self._variant)
        text = self.settings.text
        if most_tokens is not None:
            text = replace(text, max_length_tokens=min(text.max_length_tokens, most_tokens))
        self._tokenizer: TextTokenizer | None = TextTokenizer(source.folder / text.tokenizer, text)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model. Later calls raise UsageError."""
        model, self._model = self._model, None
        self._tokenizer = None
        self._lanes.close()
        if model is not None:
            model.close()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer. Raises UsageError if the bundle is closed."""
        if self._tokenizer is None:
            raise UsageError("this bundle was closed", hint="Load it again.")
        return self._tokenizer

    @property
    def model(self) -> Model:
        """The model. Raises UsageError if the bundle is closed."""
        if self._model is None:
            raise UsageError("this bundle was closed", hint="Load it again.")
        return self._model

    def run(self, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the model directly.

        Args:
            feed: Arrays by input name, with the dtypes and shapes in the manifest: int64 [B, T] each.

        Returns:
            The model's outputs, in the manifest's order.

        Raises:
            UsageError: The bundle is closed, or a shape is not accepted.
        """
        return self.model.run(feed)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 32,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> FloatArray:
        """Embed texts. For the tasks sentence-similarity and feature-extraction.

        Vectors are pooled and normalized as the checkpoint specifies. For feature-extraction, which has no pooling, the
        vector is the first token's. Memory use does not grow with the number of texts, apart from the result.

        Args:
            texts: One text, or any iterable of texts.
            batch_size: Maximum texts per run.
            prompt: Name of one of the checkpoint's prompts. Default: the checkpoint's default prompt, if any.
            truncate: Cut texts at the model's maximum length instead of raising UsageError.

        Returns:
            float32 [N, dimension], in the order of ``texts``.

        Raises:
            UsageError: The bundle has another task or is closed, the prompt is unknown, or a text is not a string or
                too long.
        """
        self._require("sentence-similarity", "feature-extraction", method="encode")
        check_counts(batch_size=batch_size)
        if isinstance(texts, np.ndarray):
            raise UsageError("this bundle takes texts, not arrays", hint="Pass a list of strings.")
        items: Iterable[str] = [texts] if isinstance(texts, str) else texts
        parts = [self._encode_window(window, start, batch_size, prompt, truncate) for start, window in _windows(items)]
        if not parts:
            return np.zeros((0, self._dimension()), dtype=np.float32)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def encode_tokens(self, texts: Sequence[str], *, batch_size: int = 32, truncate: bool = False) -> list[FloatArray]:
        """Return the last hidden state of each text. For the task feature-extraction.

        Args:
            texts: The texts.
            batch_size: Maximum texts per run.
            truncate: Cut texts at the model's maximum length instead of raising UsageError.

        Returns:
            One float32 [tokens, hidden] array per text, without padding, special tokens included.

        Raises:
            UsageError: The bundle has another task or is closed, or a text is not a string or too long.
        """
        self._require("feature-extraction", method="encode_tokens")
        results: list[FloatArray] = [np.zeros((0, 0), dtype=np.float32)] * len(texts)
        for indices, tokens, outputs in self.batches(texts, batch_size=batch_size, truncate=truncate):
            for row, index in enumerate(indices):
                results[index] = outputs[0][row, : len(tokens[row].ids)]
        return results

    def batches(
        self, texts: Sequence[Text], *, batch_size: int = 32, prompt: str = "", truncate: bool = False, start: int = 0
    ) -> Iterator[tuple[list[int], list[Tokens], list[npt.NDArray[Any]]]]:
        """Run texts in batches.

        Args:
            texts: Texts, or pairs of texts for tasks that take pairs.
            batch_size: Maximum texts per run.
            prompt: Text put before each text.
            truncate: Cut texts at the model's maximum length instead of raising UsageError.
            start: Index of the first text in error messages.

        Yields:
            The indices of a batch's texts, their tokens, and the model's outputs for them.
        """
        tokens = self.tokenizer.encode(texts, prompt=prompt, truncate=truncate, first_index=start)
        for batch, outputs in self.run_tokens(tokens, batch_size=batch_size):
            yield batch, [tokens[i] for i in batch], outputs

    def run_tokens(
        self, tokens: Sequence[Tokens], *, batch_size: int = 32
    ) -> Iterator[tuple[list[int], list[npt.NDArray[Any]]]]:
        """Run tokenized texts; yields the indices of a batch's texts and the model's outputs, longest texts first.

        A single batch runs on all threads. Many batches run in parallel, one thread each, if that is faster: threads
        that share a small matrix product mostly wait for each other.
        """
        batch_size = min(batch_size, self._most_rows or batch_size)
        lengths = [len(t.ids) for t in tokens]
        settings = self._variant.runtime
        batches = list(plan_batches(lengths, batch_size, settings.batch_tokens, mixed=settings.mixed_lengths))
        padding = self.tokenizer.settings.pad_token_id

        def feed(batch: list[int]) -> dict[str, npt.NDArray[Any]]:
            made = pad([tokens[i] for i in batch], padding)
            return {name: made[name] for name in self.inputs}

        if self._lanes.pay([sum(lengths[i] for i in batch) for batch in batches]):
            yield from zip(batches, self._lanes.run(feed(batch) for batch in batches), strict=True)
        else:
            for batch in batches:
                yield batch, self.run(feed(batch))

    def predict(
        self, inputs: Sequence[Any], *, batch_size: int = 32, top_k: int = 5, truncate: bool = False
    ) -> list[Any]:
        """Run the bundle's task on inputs and return plain Python values.

        | task | an input | its result |
        | --- | --- | --- |
        | sentence-similarity, feature-extraction | text | list of floats |
        | text-classification | text | `[{"label", "score"}]`, best `top_k`, softmax |
        | text-ranking | (query, passage) | `{"score", "logit"}` |
        | token-classification | text | `[{"word", "label", "score", "start", "end"}]` |
        | fill-mask | text with one mask token | `[{"token", "score", "sequence"}]`, best `top_k` |
        | question-answering | (question, context) | `{"answer", "score", "start", "end"}` |

        Args:
            inputs: The inputs.
            batch_size: Maximum inputs per run.
            top_k: Number of labels or tokens per input.
            truncate: Cut texts at the model's maximum length instead of raising UsageError.

        Returns:
            One entry per input, in order.

        Raises:
            UsageError: The bundle is closed, an input does not fit the task or is too long, or a number is below 1.
        """
        from edgecompress.kinds.encoder.heads import predict

        check_counts(batch_size=batch_size, top_k=top_k)
        return predict(self, inputs, batch_size=batch_size, top_k=top_k, truncate=truncate)

    def _encode_window(
        self, window: list[str], start: int, batch_size: int, prompt: str | None, truncate: bool
    ) -> FloatArray:
        prefix = self._prompt(prompt)
        result: FloatArray | None = None
        pieces = self.batches(window, batch_size=batch_size, prompt=prefix, truncate=truncate, start=start)
        for indices, _, outputs in pieces:
            vectors = outputs[0] if outputs[0].ndim == 2 else outputs[0][:, 0]
            if result is None:
                result = np.empty((len(window), vectors.shape[1]), dtype=np.float32)
            result[indices] = vectors
        assert result is not None
        return result

    def _prompt(self, name: str | None) -> str:
        settings = self.tokenizer.settings
        name = name if name is not None else settings.default_prompt
        if name is None:
            return ""
        if name not in settings.prompts:
            known = ", ".join(sorted(settings.prompts)) or "none"
            raise UsageError(f"the checkpoint has no prompt named '{name}'", hint=f"Its prompts: {known}.")
        return settings.prompts[name]

    def _dimension(self) -> int:
        size = self._variant.outputs[0].shape[-1]
        return size if isinstance(size, int) else 0

    def _require(self, *tasks: str, method: str) -> None:
        if self.manifest.task not in tasks:
            raise UsageError(
                f"this bundle is for {self.manifest.task}, which has no {method}()", hint="Call predict() instead."
            )


def _largest(variant: Variant) -> tuple[int | None, int | None]:
    """Maximum texts per batch and tokens per text that an engine was built for; None without an engine."""
    if variant.engine is None:
        return None, None
    largest = next(iter(variant.engine.profile.values())).largest
    return largest[0], largest[1]


def _windows(items: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    iterator, start = iter(items), 0
    while window := list(itertools.islice(iterator, _WINDOW)):
        yield start, window
        start += len(window)
