"""Token sequences for calibration and, from other topics, for measuring fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgecompress.errors import CalibrationError, StudentError
from edgecompress.kinds.base import SampleSource
from edgecompress.kinds.decoder.check import Ids
from edgecompress.quantize.texts import affordable_texts, load_texts
from edgecompress.types.recipe import Recipe

HELD_OUT_TOKENS = 128  # tokens per text for perplexity

_REFERENCE_WORK = 2e12  # limit of parameters x tokens for PyTorch's reference: a minute on two idle cores
_FEWEST_TEXTS = 8


@dataclass(frozen=True, kw_only=True)
class TextSamples:
    source: SampleSource
    calibration: Sequence[Ids]  # limited by the student's size
    every: Sequence[Ids]  # all calibration texts
    held_out: Sequence[Ids]


def load_samples(recipe: Recipe, tokenizer: Path, parameters: int, context_tokens: int | None) -> TextSamples:
    """Return texts int64 [T], none longer than the context. Raises CalibrationError if there is too little text."""
    calibration, quality = recipe.calibration, recipe.quality
    texts = load_texts(calibration, quality.samples)
    limit = context_tokens or HELD_OUT_TOKENS
    affordable = max(_FEWEST_TEXTS, int(_REFERENCE_WORK / (parameters * HELD_OUT_TOKENS)))
    held_out = _cut(tokenizer, texts.held_out, min(HELD_OUT_TOKENS, limit), min(quality.samples, affordable))
    if not held_out:
        raise CalibrationError("the held-out text is shorter than two tokens", hint="Provide more text.")
    every = _cut(tokenizer, texts.calibration, min(calibration.max_length_tokens, limit), calibration.samples)
    longest = max(map(len, every), default=1)
    return TextSamples(
        source=SampleSource(text=f"{texts.source} (sha256 {texts.sha256})", sha256=texts.sha256),
        calibration=every[: affordable_texts(parameters, longest, len(every))],
        every=every,
        held_out=held_out,
    )


def _cut(path: Path, texts: Sequence[str], tokens: int, count: int) -> list[Ids]:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    stream = tokenizer.encode("\n\n".join(texts)).ids
    pieces = [np.array(stream[i : i + tokens], dtype=np.int64) for i in range(0, len(stream), tokens)]
    return [piece for piece in pieces if len(piece) > 1][:count]


def require_tokens_fit(tokenizer: Path, vocab_size: int) -> None:
    """Raises StudentError if the tokenizer has a token without a row in the embedding table."""
    largest = Tokenizer.from_file(str(tokenizer)).get_vocab_size(with_added_tokens=True) - 1
    if largest >= vocab_size:
        raise StudentError(
            f"the tokenizer has token {largest}, but the embedding table has only {vocab_size} rows",
            hint="Copy the model's own tokenizer.json beside config.json; this one is another model's.",
        )
