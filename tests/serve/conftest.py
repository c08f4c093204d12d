"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import decoder_bundle
from tests.serve.running import Running, running

pytest.importorskip("fastapi")
pytest.importorskip("openai")
PROMPT = "why is the sky blue?"
ANSWER = "<think>hm, light</think>It is 😀."


@pytest.fixture(scope="session")
def thinking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says ANSWER to PROMPT in a chat, reasoning included."""
    return decoder_bundle.thinking_bundle(tmp_path_factory.mktemp("thinking"), PROMPT, ANSWER)


@pytest.fixture(scope="session")
def endless_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that never end a text by themselves; it takes a while until the context is full."""
    return decoder_bundle.decoder_bundle(tmp_path_factory.mktemp("endless") / "b", context=16384)


@pytest.fixture(scope="module")
def thinking(thinking_bundle: Path) -> Iterator[Running]:
    with running(thinking_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def endless(endless_bundle: Path) -> Iterator[Running]:
    with running(endless_bundle) as server:
        yield server
