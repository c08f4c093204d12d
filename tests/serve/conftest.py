"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load
from tests.decoder_bundle import decoder_bundle, scripted_bundle, tokenizer
from tests.serve.running import Running, running

pytest.importorskip("fastapi")
pytest.importorskip("openai")
PROMPT = "why is the sky blue?"
ANSWER = "<think>hm, light</think>It is 😀."


@pytest.fixture(scope="session")
def thinking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says ANSWER to PROMPT in a chat, reasoning included."""
    folder = tmp_path_factory.mktemp("thinking")
    with load(decoder_bundle(folder / "probe")) as probe:
        assert isinstance(probe, Generator)
        length = len(probe.token_ids([{"role": "user", "content": PROMPT}]))
    new = tokenizer().encode(ANSWER, add_special_tokens=False).ids
    return scripted_bundle(folder / "b", length, new, think_start="<think>", think_end="</think>")


@pytest.fixture(scope="session")
def endless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that never end a text by themselves; it takes a while until the context is full."""
    return decoder_bundle(tmp_path_factory.mktemp("endless") / "b", context=16384)


@pytest.fixture(scope="module")
def thinking(thinking_bundle: Path) -> Iterator[Running]:
    with running(thinking_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def endless(endless_bundle: Path) -> Iterator[Running]:
    with running(endless_bundle) as server:
        yield server
