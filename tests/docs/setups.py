"""What a page needs before its first command: a student, a bundle, texts, a device.

A page names them at its top, one a line: ``<!-- setup: sentence-student all-MiniLM-L6-v2 -->``. A setup gets the page's
working folder and the words behind its name. It may return a context manager, such as a running server, which is
entered before the first command and left after the last.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

Setup = Callable[..., AbstractContextManager[Any] | None]

SETUPS: dict[str, Setup] = {}


def setup(name: str) -> Callable[[Setup], Setup]:
    """Register a function as the setup of that name."""

    def register(function: Setup) -> Setup:
        assert name not in SETUPS, f"two setups are named {name}"
        SETUPS[name] = function
        return function

    return register


def all_setups() -> dict[str, Setup]:
    """Those of this module and of every ``tests/docs/setup_*.py``."""
    for path in sorted(Path(__file__).parent.glob("setup_*.py")):
        importlib.import_module(f"tests.docs.{path.stem}")
    return SETUPS


@setup("sentence-student")
def sentence_student(folder: Path, path: str) -> None:
    """A sentence-transformers checkpoint with the files of all-MiniLM-L6-v2, four small layers and random weights."""
    from tests.distill.lessons import sentence_teacher

    sentence_teacher(folder / path)


@setup("decoder-student")
def decoder_student(folder: Path, path: str) -> None:
    """A Qwen2 checkpoint with a chat template, two small layers and random weights."""
    from tests.decoder_bundle import TEMPLATE
    from tests.decoders import tiny_decoder

    tiny_decoder(folder / path, "qwen2")
    (folder / path / "chat_template.jinja").write_text(TEMPLATE)


@setup("sentence-bundle")
def sentence_bundle(folder: Path, path: str) -> None:
    from tests.serve.encoder_bundle import encoder_bundle

    encoder_bundle(folder / path)


@setup("decoder-bundle")
def decoder_bundle(folder: Path, path: str) -> None:
    from tests.decoder_bundle import decoder_bundle as write

    write(folder / path)


@setup("texts")
def texts(folder: Path, path: str, lines: str) -> None:
    """A text file with one sentence a line."""
    from tests.tiny import SENTENCES

    (folder / path).write_text("".join(f"{SENTENCES[i % len(SENTENCES)]} {i}\n" for i in range(int(lines))))


@setup("photo")
def photo(folder: Path, path: str) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(folder / path)
