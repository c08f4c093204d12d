"""Turns a task's logits into plain Python values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecompress.errors import UsageError
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.runtime.batching import Text, TextTokenizer, Tokens
from edgecompress.runtime.scores import label_of, softmax, top_labels
from edgecompress.types.arrays import Array, FloatArray
from edgecompress.types.bundle import Manifest

_MAX_ANSWER_TOKENS = 30


class TextModel(Protocol):
    """The parts of :class:`edgecompress.kinds.encoder.runtime.Encoder` that heads use."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def settings(self) -> EncoderSettings: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def encode(self, texts: str | Sequence[str], *, batch_size: int, truncate: bool) -> FloatArray: ...

    def batches(
        self, texts: Sequence[Text], *, batch_size: int, truncate: bool
    ) -> Iterator[tuple[list[int], list[Tokens], list[Array]]]: ...


def predict(encoder: TextModel, inputs: Sequence[Any], *, batch_size: int, top_k: int, truncate: bool) -> list[Any]:
    """Return one entry per input, as :meth:`edgecompress.kinds.encoder.runtime.Encoder.predict` describes.

    ``start`` and ``end`` are character offsets. Token classification skips special tokens; fill-mask fills the first
    mask. Raises UsageError for an input that the task does not accept.
    """
    task = encoder.manifest.task
    if task in ("sentence-similarity", "feature-extraction"):
        return [vector.tolist() for vector in encoder.encode(inputs, batch_size=batch_size, truncate=truncate)]
    results: list[Any] = [None] * len(inputs)
    for indices, tokens, outputs in encoder.batches(inputs, batch_size=batch_size, truncate=truncate):
        for row, index in enumerate(indices):
            length = len(tokens[row].ids)
            if task == "text-classification":
                results[index] = top_labels(outputs[0][row], encoder.settings.labels, top_k)
            elif task == "text-ranking":
                results[index] = _ranking(outputs[0][row])
            elif task == "token-classification":
                results[index] = _entities(
                    outputs[0][row, :length], tokens[row], inputs[index], encoder.settings.labels
                )
            elif task == "fill-mask":
                results[index] = _fills(encoder, outputs[0][row, :length], tokens[row].ids, index, top_k)
            else:
                results[index] = _answer(outputs[0][row, :length], outputs[1][row, :length], tokens[row], inputs[index])
    return results


def _ranking(logits: npt.NDArray[Any]) -> dict[str, float]:
    logit = float(logits[-1])
    return {"logit": round(logit, 6), "score": round(float(1 / (1 + np.exp(-logit))), 6)}


def _entities(logits: npt.NDArray[Any], tokens: Any, text: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
    scores = softmax(logits)
    found = []
    for position, (start, end) in enumerate(tokens.offsets):
        if start == end or tokens.sequence_ids[position] is None:
            continue
        best = int(scores[position].argmax())
        source = text if isinstance(text, str) else text[tokens.sequence_ids[position]]
        found.append(
            {
                "word": source[start:end],
                "label": label_of(labels, best),
                "score": round(float(scores[position, best]), 6),
                "start": start,
                "end": end,
            }
        )
    return found


def _fills(
    encoder: TextModel, logits: npt.NDArray[Any], ids: list[int], index: int, top_k: int
) -> list[dict[str, Any]]:
    tokenizer = encoder.tokenizer
    mask = tokenizer.settings.mask_token
    mask_id = tokenizer.token_to_id(mask) if mask else None
    if mask_id is None or mask_id not in ids:
        raise UsageError(
            f"text {index} has no {mask or 'mask'} token to fill", hint=f"Put {mask} in place of the missing word."
        )
    position = ids.index(mask_id)
    scores = softmax(logits[position])
    fills = []
    for best in np.argsort(-scores, kind="stable")[:top_k]:
        filled = [int(best) if i == position else token for i, token in enumerate(ids)]
        fills.append(
            {
                "token": tokenizer.decode([int(best)]).strip(),
                "score": round(float(scores[best]), 6),
                "sequence": tokenizer.decode(filled[1:-1]),
            }
        )
    return fills


def _answer(start: npt.NDArray[Any], end: npt.NDArray[Any], tokens: Any, pair: Any) -> dict[str, Any]:
    if not isinstance(pair, tuple):
        raise UsageError("question answering takes (question, context) pairs", hint="Pass a pair of texts per input.")
    inside = np.array([s == 1 for s in tokens.sequence_ids])
    if not inside.any():
        return {"answer": "", "score": 0.0, "start": 0, "end": 0}
    p = softmax(np.where(inside, start, -1e9))[:, None] * softmax(np.where(inside, end, -1e9))[None, :]
    distance = np.arange(len(start))[None, :] - np.arange(len(start))[:, None]
    p = np.where((distance >= 0) & (distance < _MAX_ANSWER_TOKENS), p, 0.0)
    first, last = np.unravel_index(int(p.argmax()), p.shape)
    begin, finish = tokens.offsets[first][0], tokens.offsets[last][1]
    return {
        "answer": pair[1][begin:finish],
        "score": round(float(p[first, last]), 6),
        "start": int(begin),
        "end": int(finish),
    }
