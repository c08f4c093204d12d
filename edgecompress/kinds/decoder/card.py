"""A decoder bundle's README: the usage example, and the cost of its KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.formats.codec import from_jsonable
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.types.bundle import Manifest
from edgecompress.types.report import Report


def example(manifest: Manifest) -> Sequence[str]:
    chats = _settings(manifest).generation.chat_template is not None
    prompt = '[{"role": "user", "content": "Why is the sky blue?"}]' if chats else '"The sky is blue because"'
    return (
        'with load("path/to/this/folder") as generator:',
        f"    prompt = {prompt}",
        "    for piece in generator.stream(prompt, max_new_tokens=64):",
        '        print(piece, end="", flush=True)',
    )


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    kept = [("KV cache", _settings(manifest).generation.kv_dtype)]
    if report.kv_cache is not None:
        kept.append(("perplexity ratio of the cache alone", f"{report.kv_cache.perplexity_ratio:.4f}"))
    return kept


def _settings(manifest: Manifest) -> DecoderSettings:
    return from_jsonable(DecoderSettings, dict(manifest.settings))
