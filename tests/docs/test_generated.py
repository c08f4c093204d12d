"""The generated parts of the docs are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import generated, meanings

PAGES = sorted(page for page in generated.DOCS.rglob("*.md") if generated.names_in(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(generated.DOCS)))
def test_a_page_is_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generated.render(text) == text, "run `python -m tests.docs.generated --write`"


def test_every_part_is_on_a_page() -> None:
    used = {name for page in PAGES for name in generated.names_in(page.read_text(encoding="utf-8"))}
    assert used == set(generated.GENERATED)


def test_what_was_changed_by_hand_is_renewed() -> None:
    page = "a\n<!-- generated: tasks -->\nstale\n<!-- end -->\nb\n"
    new = generated.render(page)
    assert "stale" not in new
    assert "`text-generation`" in new
    assert new.startswith("a\n")
    assert new.endswith("<!-- end -->\nb\n")
    assert generated.render(new) == new


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        generated.render("<!-- generated: nonsense -->\n<!-- end -->\n")


def test_a_key_without_a_meaning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: text for name, text in meanings.TARGET.items() if name != "cores"}
    monkeypatch.setattr(meanings, "TARGET", {**texts, "cored": "A slip."})
    with pytest.raises(ValueError, match=r"without a meaning \['cores'\], no longer there \['cored'\]"):
        generated.target_keys()


def test_every_key_of_a_recipe_that_a_flag_sets_names_it() -> None:
    rows = generated.recipe_keys().splitlines()
    flag = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in rows if row.startswith("| `")}
    assert flag["`min_fidelity`"] == "`--min-fidelity`"
    assert flag["`terms_url`"] == ""
