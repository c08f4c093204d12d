"""The snapshots are what the code says now. After a change of wording: ``python -m tests.wording``."""

from __future__ import annotations

import difflib
import platform
import sys

import pytest

from tests.wording import helps, provoked, templates
from tests.wording.snapshots import stored

REGENERATE = "the wording changed; look at the difference, then run `python -m tests.wording`"


def assert_same(name: str, found: str) -> None:
    lines = difflib.unified_diff(stored().get(name, "").splitlines(), found.splitlines(), "stored", "now", lineterm="")
    difference = "\n".join(lines)
    assert not difference, f"{name}: {REGENERATE}\n{difference}"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays out its help differently")
def test_help() -> None:
    found = helps.texts()
    assert {name for name in stored() if name.startswith("help/")} == set(found)
    for name, text in found.items():
        assert_same(name, text)


def test_templates() -> None:
    assert_same("templates.txt", templates.text())


@pytest.fixture(scope="module")
def outcomes() -> list[provoked.Outcome]:
    if platform.machine() != "x86_64":
        pytest.skip("its bundles are for x86-64")
    return provoked.provoke()


@pytest.mark.slow
def test_errors(outcomes: list[provoked.Outcome]) -> None:
    assert_same("errors.txt", provoked.text(outcomes))


@pytest.mark.slow
def test_every_error_is_a_message_and_an_exit_code(outcomes: list[provoked.Outcome]) -> None:
    for each in outcomes:
        lines = each.text.splitlines()
        assert any(line.startswith("edgecompress: ") for line in lines), each
        assert each.code in (2, 3, 4, 6, 7), each
        assert "Traceback" not in each.text, each
        assert "internal error" not in each.text, each


def test_templates_are_read_as_they_print() -> None:
    hint = "`edgecompress targets` lists them; then `edgecompress targets show NAME`."
    found = [site for site in templates.sites() if site.module == "edgecompress.cli.targets"]
    assert ("UsageError", "no target was named", hint) in {(site.kind, site.message, site.hint) for site in found}
