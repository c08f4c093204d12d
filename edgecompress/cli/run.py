"""``edgecompress run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.cli import generate
from edgecompress.cli.output import add_json_flag, emit_json, note, table
from edgecompress.errors import UsageError

if TYPE_CHECKING:
    from edgecompress.kinds.encoder.runtime import Encoder

_SHOWN_VALUES = 4
_SHOWN_TEXT = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("inputs", nargs="*", help="texts, prompts, or image files; stdin, if there are none")
    parser.add_argument("--file", type=Path, help="read the texts from a file, one a line")
    parser.add_argument("--prompt", help="one of the checkpoint's prompts, for embeddings")
    parser.add_argument("--top-k", type=int, help="labels or tokens shown (5); tokens that are sampled from")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--truncate", action="store_true", help="cut texts beyond the model's maximum, not refuse them")
    parser.add_argument("--threads", type=int, help="the target's choice unless given")
    parser.add_argument("--device", type=int, metavar="N", help="the GPU, where there are several")
    parser.add_argument("--allow-mismatch", action="store_true", help="load a bundle made for another CPU")
    parser.add_argument("-o", "--output", type=Path, help="write embeddings as .npy instead of printing them")
    generate.add_arguments(parser.add_argument_group("text generation"))
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.kinds.encoder.runtime import Encoder
    from edgecompress.runtime import load

    wanted = {"threads": options.threads, "device": options.device, "allow_mismatch": options.allow_mismatch}
    with load(options.bundle, **wanted) as encoder:
        if not isinstance(encoder, Encoder):
            return generate.run(encoder, options)
        generate.refuse(options)
        task = encoder.manifest.task
        top_k = 5 if options.top_k is None else options.top_k
        texts = _inputs(options)
        if task in ("sentence-similarity", "feature-extraction"):
            return _embed(encoder, texts, options)
        inputs: Sequence[Any] = _pairs(texts, task)
        results = encoder.predict(inputs, batch_size=options.batch_size, top_k=top_k, truncate=options.truncate)
        if options.json:
            emit_json(
                {"task": task, "results": [{"input": i, "output": o} for i, o in zip(inputs, results, strict=True)]}
            )
        else:
            for item, result in zip(inputs, results, strict=True):
                print(_short(" | ".join(item) if isinstance(item, tuple) else item, 100))
                for row in result if isinstance(result, list) else [result]:
                    print("  " + (_row(row) if isinstance(row, dict) else str(row)))
    return 0


def _inputs(options: argparse.Namespace) -> list[str]:
    texts: list[str] = list(options.inputs)
    if options.file is not None:
        try:
            texts += options.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{options.file} cannot be read: {error}", hint="Give a text file in UTF-8.") from error
    if not texts and not sys.stdin.isatty():
        texts = sys.stdin.read().splitlines()
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(
            "there is nothing to run: the input is empty", hint='Give texts: `edgecompress run BUNDLE "a text"`.'
        )
    return texts


def _pairs(texts: list[str], task: str) -> Sequence[Any]:
    """Ranking: the first text is the query. Question answering: the first is the question."""
    if task not in ("text-ranking", "question-answering"):
        return texts
    if len(texts) < 2:
        raise UsageError(f"{task} takes a first text and at least one more", hint="Give a query, then the passages.")
    return [(texts[0], text) for text in texts[1:]]


def _embed(encoder: Encoder, texts: list[str], options: argparse.Namespace) -> int:
    import numpy as np

    vectors = encoder.encode(texts, batch_size=options.batch_size, prompt=options.prompt, truncate=options.truncate)
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
    shown = min(len(texts), 8)
    rows = []
    for i, text in enumerate(texts):
        head = ", ".join(f"{v:+.4f}" for v in vectors[i][:_SHOWN_VALUES])
        rows.append([_short(text, _SHOWN_TEXT), f"[{head}, …]", *(f"{c:.3f}" for c in cosines[i][:shown])])
    print(table(["text", f"vector of {vectors.shape[1]}", *(f"cos {i + 1}" for i in range(shown))], rows))
    return 0


def _row(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
