"""A text encoder bundle's README: the usage example."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.formats.codec import from_jsonable
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.types.bundle import Manifest
from edgecompress.types.report import Report

_PREDICT = {
    "text-classification": '["a sentence"]',
    "token-classification": '["Ada Lovelace lived in London"]',
    "text-ranking": '[("a query", "a passage"), ("a query", "another passage")]',
    "question-answering": '[("where is the cat?", "the cat is in the garden")]',
}


def example(manifest: Manifest) -> Sequence[str]:
    return ('with load("path/to/this/folder") as encoder:', *(f"    {line}" for line in _lines(manifest)))


def _lines(manifest: Manifest) -> Sequence[str]:
    if manifest.task in ("sentence-similarity", "feature-extraction"):
        dimension = manifest.variant().outputs[0].shape[-1]
        return (
            f'vectors = encoder.encode(["a sentence", "another sentence"])  # float32 [2, {dimension}]',
            "print(vectors.shape)",
        )
    if manifest.task == "fill-mask":
        mask = from_jsonable(EncoderSettings, dict(manifest.settings)).text.mask_token
        return (f'print(encoder.predict(["the cat sat on the {mask}"]))',)
    return (f"print(encoder.predict({_PREDICT[manifest.task]}))",)


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    return ()
