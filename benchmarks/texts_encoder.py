"""Real text for the encoder benchmarks: the prose that ships with Python (``pydoc_data.topics``), tokenized once.

The peers' calibration texts, the held-out texts of fidelity and our own export's calibration texts share no sentence.
The prose differs between Python releases, so the header of every result names the release.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Feeds = dict[str, NDArray[np.int64]]
"""input_ids, attention_mask, token_type_ids: int64 [B, T]."""

CALIBRATION_PASSAGES = 160
HELD_OUT_SENTENCES = 192
HELD_OUT_PASSAGES = 48
PASSAGE_TOKENS = range(128, 257)
MIXED_SENTENCES = 32


@dataclass(frozen=True, kw_only=True)
class Texts:
    """``calibration`` is for the peers that calibrate; the other three were seen by no side."""

    calibration: tuple[str, ...]
    sentences: tuple[str, ...]
    passages: tuple[tuple[int, ...], ...]  # token ids, 128 to 256 of them
    mixed: tuple[str, ...]


def _paragraphs(text: str) -> list[str]:
    flat = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [p for p in flat if len(p) > 60 and sum(c.isalpha() or c == " " for c in p) / len(p) > 0.8]


def _sentences(paragraph: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?]) +(?=[A-Z])", paragraph) if 20 <= len(s) <= 600]


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The checkpoint's tokenizer with truncation and padding off: the benchmark decides about both."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def seen_by_our_export() -> str:
    """Every text that ``edgecompress export`` calibrates on by default, as one string."""
    try:
        text = importlib.import_module("edgecompress.quantize.texts")
        recipe = importlib.import_module("edgecompress.types.recipe")
    except ModuleNotFoundError:
        return ""
    loaded = text.load_texts(recipe.CalibrationRecipe(), recipe.QualityRecipe().samples)
    return " ".join(" ".join(sample.split()) for sample in loaded.calibration)


def load_texts(tokenizer: Tokenizer) -> Texts:
    """Split the prose topic by topic, so that no passage lies in two sets.

    Raises SystemExit if fewer held-out sentences are left than the fidelity figures promise.
    """
    names = sorted(topics)
    for_calibration = [p for name in names[::3] for p in _paragraphs(topics[name])]
    rest = [p for i, name in enumerate(names) if i % 3 for p in _paragraphs(topics[name])]
    seen = seen_by_our_export() + " ".join(for_calibration)
    fresh = [s for s in dict.fromkeys(s for p in rest for s in _sentences(p)) if s not in seen]
    rng = random.Random(0)
    rng.shuffle(fresh)
    if len(fresh) < HELD_OUT_SENTENCES + MIXED_SENTENCES:
        raise SystemExit(f"only {len(fresh)} sentences are left that no side calibrated on")
    chosen = fresh[: HELD_OUT_SENTENCES + MIXED_SENTENCES]
    # Passages are runs of fresh sentences, in the order in which they stand in the prose.
    unseen = set(fresh)
    stream = " ".join(s for p in rest for s in _sentences(p) if s in unseen)
    ids = tokenizer.encode(stream, add_special_tokens=False).ids
    passages = []
    for _ in range(HELD_OUT_PASSAGES):
        length = rng.choice(PASSAGE_TOKENS)
        start = rng.randrange(len(ids) - length)
        passages.append(with_special_tokens(tokenizer, ids[start : start + length - 2]))
    return Texts(
        calibration=tuple(rng.sample(for_calibration, CALIBRATION_PASSAGES)),
        sentences=tuple(chosen[:HELD_OUT_SENTENCES]),
        passages=tuple(passages),
        mixed=tuple(chosen[HELD_OUT_SENTENCES:]),
    )


def with_special_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    first, last = tokenizer.encode("").ids
    return (first, *ids, last)


def exact_length(tokenizer: Tokenizer, batch: int, length_tokens: int) -> Feeds:
    """``batch`` pieces of running prose, each of exactly ``length_tokens`` tokens: no padding anywhere."""
    rng = random.Random(length_tokens)
    prose = " ".join(p for name in sorted(topics) for p in _paragraphs(topics[name])[:4])
    ids = tokenizer.encode(prose, add_special_tokens=False).ids
    starts = [rng.randrange(len(ids) - length_tokens) for _ in range(batch)]
    return feeds([with_special_tokens(tokenizer, ids[i : i + length_tokens - 2]) for i in starts])


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_length_tokens: int = 256) -> list[tuple[int, ...]]:
    cut = [encoding.ids[1:-1][: max_length_tokens - 2] for encoding in tokenizer.encode_batch(list(texts))]
    return [with_special_tokens(tokenizer, ids) for ids in cut]


def feeds(rows: Sequence[Sequence[int]]) -> Feeds:
    """One batch, padded to its longest row."""
    ids = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def sorted_batches(rows: Sequence[Sequence[int]], size: int) -> list[tuple[list[int], Feeds]]:
    """Batches of like length: (positions in ``rows``, the padded batch) for each."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [(part, feeds([rows[i] for i in part])) for part in parts]
