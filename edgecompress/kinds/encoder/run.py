"""``edgecompress run`` on a text encoder: vectors and their cosines, or the task's predictions."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import UsageError
from edgecompress.kinds.base import FlagGroup
from edgecompress.terminal import emit_json, note, print_results, read_inputs, shorten, table

if TYPE_CHECKING:
    from edgecompress.kinds.encoder.runtime import Encoder

PURPOSE = "embeddings and labels of texts"

_SHOWN_VALUES = 4
_SHOWN_TEXT = 40
_SHOWN_COSINES = 8


def add_arguments(group: FlagGroup) -> None:
    group.add_argument("--prompt", help="one of the checkpoint's prompts, for embeddings")
    group.add_argument("--top-k", type=int, help="predictions shown (5)")
    group.add_argument("--batch-size", type=int, help="maximum inputs per run (default: 32)")
    group.add_argument(
        "--truncate", action="store_true", help="cut texts longer than the model's maximum instead of failing"
    )
    group.add_argument("-o", "--output", type=Path, help="write embeddings to this .npy file instead of printing them")


def run(encoder: Encoder, options: Namespace) -> int:
    task = encoder.manifest.task
    texts = read_inputs(options.inputs, options.file)
    batch_size = 32 if options.batch_size is None else options.batch_size
    if task in ("sentence-similarity", "feature-extraction"):
        return _embed(encoder, texts, batch_size, options)
    inputs = _pairs(texts, task) if task in ("text-ranking", "question-answering") else texts
    top_k = 5 if options.top_k is None else options.top_k
    results = encoder.predict(inputs, batch_size=batch_size, top_k=top_k, truncate=options.truncate)
    print_results(task, inputs, results, as_json=options.json)
    return 0


def _pairs(texts: list[str], task: str) -> Sequence[Any]:
    """Pair the first text, the query or question, with each other text."""
    if len(texts) < 2:
        raise UsageError(
            f"{task} needs at least two texts", hint="Give the query or question first, then the passages."
        )
    return [(texts[0], text) for text in texts[1:]]


def _embed(encoder: Encoder, texts: list[str], batch_size: int, options: Namespace) -> int:
    import numpy as np

    vectors = encoder.encode(texts, batch_size=batch_size, prompt=options.prompt, truncate=options.truncate)
    if options.output is not None:
        with open(options.output, "wb") as file:
            np.save(file, vectors)
        note(f"wrote {vectors.shape[0]} vectors of {vectors.shape[1]} float32 values to {options.output}")
        return 0
    if options.json:
        results = [{"input": t, "output": v.tolist()} for t, v in zip(texts, vectors, strict=True)]
        emit_json({"task": encoder.manifest.task, "results": results})
        return 0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    shown = min(len(texts), _SHOWN_COSINES)
    rows = []
    for i, text in enumerate(texts):
        head = ", ".join(f"{v:+.4f}" for v in vectors[i][:_SHOWN_VALUES])
        rows.append([shorten(text, _SHOWN_TEXT), f"[{head}, …]", *(f"{c:.3f}" for c in cosines[i][:shown])])
    print(table(["text", f"vector of {vectors.shape[1]}", *(f"cos {i + 1}" for i in range(shown))], rows))
    return 0
