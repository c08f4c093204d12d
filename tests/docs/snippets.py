"""Code on the docs' pages from its source files, and the index of ADRs: ``python -m tests.docs.snippets --write``.

``<!-- from: FILE -->`` before a fenced block means the whole file; ``<!-- from: FILE NAME … -->`` the named functions,
classes and assignments of its top level, or ``CLASS.METHOD``; ``<!-- from: FILE 3-8 -->`` lines. The index is between
``<!-- adrs -->`` and ``<!-- end -->``. A test compares every page with its sources.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

ADRS = DOCS / "adr"
_SNIPPET = re.compile(
    r"^<!-- from: (?P<file>\S+)(?P<names>(?: [\w.-]+)*) -->\n(?P<open>```[^\n]*\n)(?P<code>.*?)^```$", re.M | re.S
)
_INDEX = re.compile(r"(<!-- adrs -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_TITLE = re.compile(r"# (\d+)\. (.+)\n\n")
_LINK = r"\[\d{4}\]\(\d{4}-[\w-]+\.md\)"
_STATUS = re.compile(rf"Status: (accepted|(?:amended|superseded) by {_LINK}(?:, {_LINK})*) · (\d{{4}}-\d\d-\d\d)\n")


@dataclass(frozen=True, kw_only=True)
class Adr:
    file: str
    number: int
    title: str
    status: str
    date: str


def read_adr(path: Path) -> Adr:
    """Raises ValueError if the file does not begin with title and status."""
    text = path.read_text(encoding="utf-8")
    title = _TITLE.match(text)
    status = _STATUS.match(text, title.end()) if title else None
    if not title or not status:
        raise ValueError(f"{path.name} does not begin with '# N. Title' and 'Status: accepted · YYYY-MM-DD'")
    return Adr(file=path.name, number=int(title[1]), title=title[2], status=status[1], date=status[2])


def adrs() -> list[Adr]:
    return [read_adr(path) for path in sorted(ADRS.glob("[0-9]*.md"))]


def adr_index() -> str:
    """A Markdown table."""
    lines = ["| number | decision | status | date |", "| --- | --- | --- | --- |"]
    lines += [f"| {a.number} | [{a.title}]({a.file}) | {a.status} | {a.date} |" for a in adrs()]
    return "\n".join(lines)


def code_from(file: str, *names: str) -> str:
    """The code of a marker. Raises KeyError for a name that the file does not have at its top level."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    if not names:
        return text
    parts = []
    for name in names:
        if re.fullmatch(r"\d+-\d+", name):
            first, last = (int(number) for number in name.split("-"))
            if not 1 <= first <= last <= len(lines):
                raise KeyError(f"{file} has no lines {name}")
        else:
            first, last = _span(ast.parse(text), file, name)
        parts.append(textwrap.dedent("\n".join(lines[first - 1 : last])))
    text, *rest = parts
    for before, after in zip(parts, rest, strict=False):
        apart = any(re.search(r"^(async def|def|class|@)", part, re.MULTILINE) for part in (before, after))
        text += ("\n\n\n" if apart else "\n\n") + after
    return text + "\n"


def _span(tree: ast.Module, file: str, name: str) -> tuple[int, int]:
    body = tree.body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((n for n in body if part in _names(n)), None)
        if node is None:
            raise KeyError(f"{file} has no {name}")
        body = node.body if isinstance(node, ast.ClassDef) else []
    assert node is not None
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
    return min([node.lineno, *(d.lineno for d in decorators)]), node.end_lineno or node.lineno


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def render(text: str) -> str:
    """A page with its code and its index from the sources."""

    def code(found: re.Match[str]) -> str:
        marker = found[0].partition("\n")[0]
        return f"{marker}\n{found['open']}{code_from(found['file'], *found['names'].split())}```"

    text = _SNIPPET.sub(code, text)
    return _INDEX.sub(lambda found: f"{found[1]}\n{adr_index()}\n\n{found[3]}", text)


def markers(text: str) -> list[str]:
    """The files of a page's snippets."""
    return [found["file"] for found in _SNIPPET.finditer(text)]


def pages() -> list[Path]:
    return [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the pages; without it, list those that differ")
    options = parser.parse_args()
    stale = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := render(text)) != text:
            print(f"{page.relative_to(ROOT)} {'updated' if options.write else 'differs from its sources'}")
            if options.write:
                page.write_text(new, encoding="utf-8")
            stale += not options.write
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
