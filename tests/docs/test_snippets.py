"""Code on the pages is the repository's, and the ADRs have one header and an index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import snippets

ROOT = snippets.ROOT


@pytest.mark.parametrize("page", snippets.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_on_a_page_is_that_of_its_source(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert snippets.render(text) == text, "python -m tests.docs.snippets --write"
    marked = re.findall("^<!-- from: ", text, re.MULTILINE)
    assert len(marked) == len(snippets.markers(text)), "a marker without a fenced block below it"


def test_every_adr_is_in_the_index_with_its_status() -> None:
    found = snippets.adrs()
    assert [adr.number for adr in found] == list(range(1, len(found) + 1))
    assert all(adr.file.startswith(f"{adr.number:04}-") for adr in found)
    assert [adr.date for adr in found] == sorted(adr.date for adr in found)
    index = (snippets.ADRS / "index.md").read_text(encoding="utf-8")
    assert snippets.adr_index() in index
    for adr in found:
        later = [int(number) for number in re.findall(r"\[(\d{4})\]", adr.status)]
        assert all(number > adr.number for number in later), adr.file
        assert all((snippets.ADRS / link).exists() for link in re.findall(r"\((.+?)\)", adr.status)), adr.file
        text = (snippets.ADRS / adr.file).read_text(encoding="utf-8")
        assert ("mended" in text.partition("\n\n")[2].partition("\n\n")[2]) == bool(later), f"{adr.file}: what changed"


def test_files_that_an_adr_names_exist() -> None:
    folders = (ROOT, ROOT / "benchmarks" / "results")
    for adr in snippets.adrs():
        text = " ".join((snippets.ADRS / adr.file).read_text(encoding="utf-8").split())
        for name in re.findall(r"`([\w.-]+/[\w./*-]*|[\w-]+\.jsonl)`", text):
            assert any(list(folder.glob(name.rstrip("/"))) for folder in folders), f"{adr.file}: {name}"
        for module in re.findall(r"python -m benchmarks\.(\w+)", text):
            assert (ROOT / "benchmarks" / f"{module}.py").exists(), f"{adr.file}: {module}"


def test_a_header_without_a_status_or_a_date_is_refused(tmp_path: Path) -> None:
    good = "# 3. Title\n\nStatus: amended by [0024](0024-x.md), [0025](0025-y.md) · 2026-01-02\n\ntext\n"
    path = tmp_path / "0003-title.md"
    path.write_text(good)
    assert snippets.read_adr(path).date == "2026-01-02"
    for bad in (
        good.replace(" · 2026-01-02", ""),
        good.replace("amended by", "changed by"),
        good.replace("# 3. ", "# "),
    ):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"0003-title\.md does not begin with"):
            snippets.read_adr(path)


SOURCE = '''"""A module."""

LIMIT = 3
WIDTH: int = 4


@property
def double(x: int) -> int:
    return 2 * x


class Pair:
    def add(self) -> int:
        return 1
'''


def test_code_is_found_by_name_and_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(SOURCE)
    assert snippets.code_from("m.py") == SOURCE
    assert snippets.code_from("m.py", "LIMIT", "WIDTH") == "LIMIT = 3\n\nWIDTH: int = 4\n"
    assert snippets.code_from("m.py", "double") == "@property\ndef double(x: int) -> int:\n    return 2 * x\n"
    assert snippets.code_from("m.py", "LIMIT", "double").startswith("LIMIT = 3\n\n\n@property\n")
    assert snippets.code_from("m.py", "Pair.add") == "def add(self) -> int:\n    return 1\n"
    assert snippets.code_from("m.py", "3-4") == "LIMIT = 3\nWIDTH: int = 4\n"
    for missing in ("triple", "Pair.mul", "double.x", "3-40"):
        with pytest.raises(KeyError, match=r"m\.py has no"):
            snippets.code_from("m.py", missing)
    page = "text\n\n<!-- from: m.py LIMIT -->\n```py\nLIMIT = 2\n```\n\n```py\nLIMIT = 2\n```\n"
    assert snippets.render(page) == page.replace("2", "3", 1)
    assert len(snippets.markers(page)) == 1
