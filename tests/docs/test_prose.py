"""The prose that users read is clean, and what is not clean is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs import prose

pytest.importorskip("proselint", reason="`make docs` and `make check` install it")


def test_the_prose_is_clean() -> None:
    assert prose.findings() == []


def test_spelling_is_clean() -> None:
    done = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=prose.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_not_plain_is_found_and_code_is_not_read() -> None:
    (found,) = prose.house_findings("a.md", "Fine.\nNo way out of it.\n")
    assert found.startswith("a.md:2: not plain English: way out")
    assert list(prose.proselint_findings({"a.md": "At the end of the day it works.\n"}))
    assert list(prose.proselint_findings({"a.md": 'It says "yes", see x.\n'})) == []
