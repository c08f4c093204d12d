"""Errors, warnings and notes as their templates stand in the source, by module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("edgecompress", "kernels/edgecompress_kernels", "targets/edgecompress_targets")
BASE = "EdgeCompressError"
_SPOKEN = {"note": "note", "warn": "warning"}


@dataclass(frozen=True)
class Site:
    """One place in the source that makes a text."""

    module: str
    path: Path
    first_line: int
    last_line: int
    kind: str  # the class of the error, "warning" or "note"
    message: str
    hint: str

    @property
    def is_error(self) -> bool:
        return self.kind not in _SPOKEN.values()

    def holds(self, path: Path, line: int) -> bool:
        return self.path == path and self.first_line <= line <= self.last_line


@cache
def sites() -> tuple[Site, ...]:
    errors = error_classes()
    return tuple(site for path in _files() for site in _sites_of(path, errors))


def text() -> str:
    """The stored snapshot: modules in order, the texts of each sorted."""
    by_module: dict[str, list[str]] = {}
    for site in sites():
        entry = f"  {site.kind}: {_indented(site.message)}"
        entry += f"\n    hint: {_indented(site.hint)}" if site.hint else ""
        by_module.setdefault(site.module, []).append(entry)
    parts = [f"{module}\n" + "\n".join(sorted(entries)) for module, entries in sorted(by_module.items())]
    return "\n\n".join(parts) + "\n"


@cache
def error_classes() -> frozenset[str]:
    """The names of the base class and of everything that derives from it."""
    bases: dict[str, set[str]] = {}
    for path in _files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(_name(base) for base in node.bases)
    found = {BASE}
    while new := {name for name, parents in bases.items() if parents & found} - found:
        found |= new
    return frozenset(found)


def _files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _sites_of(path: Path, errors: frozenset[str]) -> Iterator[Site]:
    top = next(folder for folder in FOLDERS if path.is_relative_to(ROOT / folder))
    parts = path.relative_to((ROOT / top).parent).with_suffix("").parts
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = _name(node.func)
        hints = [word.value for word in node.keywords if word.arg == "hint"]
        if name not in errors and name not in _SPOKEN and not (name == "error" and hints):  # a class by a variable
            continue
        yield Site(
            module=".".join(parts),
            path=path,
            first_line=node.lineno,
            last_line=node.end_lineno or node.lineno,
            kind=_SPOKEN.get(name, name),
            message=template(node.args[0]),
            hint=template(hints[0]) if hints else "",
        )


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def template(node: ast.expr) -> str:
    """A string expression as text; what is computed stands in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.FormattedValue):
        form = "" if node.format_spec is None else f":{template(node.format_spec)}"
        return f"{{{ast.unparse(node.value)}{form}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return f"{{{ast.unparse(node)}}}"


def _indented(text: str) -> str:
    return text.replace("\n", "\n      ")
