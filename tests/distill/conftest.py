"""What the tests of a distillation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.lessons import sentence_teacher, sentences


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentence encoder; never written to."""
    return sentence_teacher(tmp_path_factory.mktemp("teachers") / "teacher")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return sentences(tmp_path / "texts.jsonl")
