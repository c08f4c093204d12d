"""Lineage as a tree for the terminal: ancestors, terms, and the source of each statement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgecompress.types.bundle import Manifest
from edgecompress.types.provenance import DECLARED, VERIFIED, Ancestor, Lineage, Statement

_WIDEST = 76  # of the left column; the right one says who states it
_SHOWN = 16  # digits of a hash


@dataclass
class _Node:
    """``rows``: statements and who makes them."""

    title: str
    said_by: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)


def tree(lineage: Lineage, manifest: Manifest | None) -> str:
    """Draw the tree. ``manifest``: of a bundle; None for a checkpoint."""
    top = _checkpoint(lineage)
    if manifest is not None:
        made = f"{manifest.name}, {manifest.precision} for {manifest.target.name}"
        bundle = _Node(title=f"bundle {made}, by edgecompress {manifest.tool_version}", said_by=VERIFIED)
        bundle.rows.append((f"{len(manifest.files)} files match the manifest's sha256", VERIFIED))
        bundle.rows += [(f"{path}: {origin}", "computed") for path, origin in sorted(lineage.licences.items())]
        _add(bundle, "proposed name", lineage.proposed_name)
        bundle.below.append(top)
        top.title = f"made from {top.title}"
        top = bundle
    lines = list(_lines(top, "", "", ""))
    width = min(_WIDEST, max(len(left) for left, _ in lines))
    drawn = [f"{left:<{width}}  {right}".rstrip() for left, right in lines]
    return "\n".join([*drawn, *(f"remark: {remark}" for remark in lineage.remarks)])


def _checkpoint(lineage: Lineage) -> _Node:
    node = _Node(title=f"checkpoint {lineage.source.value or 'unknown'}", said_by=lineage.source.said_by)
    _add(node, "revision", lineage.revision, always=False)
    node.rows.append((f"{len(lineage.files)} files with their sha256", "computed"))
    _add_licence(node, lineage.licence, lineage.licence_name, lineage.licence_link)
    _add(node, "status", lineage.status, always=True)
    _add(node, "accepted", lineage.accepted)
    _add(node, "datasets", lineage.datasets, always=True)
    _add(node, "calibration", lineage.calibration)
    teaching = lineage.distillation
    if teaching is not None:
        who = VERIFIED if teaching.verified else DECLARED
        node.rows.append((f"distilled: {teaching.method}, by edgecompress {teaching.tool_version}", who))
        node.rows.append((f"training data: {teaching.data}, sha256 {teaching.data_sha256[:_SHOWN]}…", who))
        if teaching.responses is not None:
            given = teaching.responses
            node.rows.append((f"{given.responses} responses from {given.name}, sha256 {given.sha256[:_SHOWN]}…", who))
            if given.teacher is not None:
                node.rows.append((f"teacher named in that file: {given.teacher}", who))
    for entry in lineage.terms:
        where = f"{DECLARED} in {entry.where}, of {entry.of}"
        counts = lineage.status.where == f"{entry.where}, of {entry.of}"  # shown above then
        pairs = [
            ("status", None if counts else entry.status),
            ("teacher", entry.teacher),
            ("data", entry.data),
            ("terms", entry.url),
        ]
        pairs += [("terms retrieved", entry.retrieved), ("terms sha256", entry.sha256)]
        pairs += [("condition", condition) for condition in entry.conditions]
        pairs.append(("name prefix", entry.name_prefix))
        node.rows += [(f"{name}: {value}", where) for name, value in pairs if value]
    node.below = _ancestors(lineage.ancestors, None)
    if not node.below:
        node.below.append(_Node(title="made from: unknown", said_by="nobody"))
    return node


def _ancestors(ancestors: tuple[Ancestor, ...], of: int | None) -> list[_Node]:
    nodes = []
    for place, ancestor in enumerate(ancestors):
        if ancestor.of != of:
            continue
        node = _Node(title=f"{ancestor.relation.value}: {ancestor.name}", said_by=_who(ancestor.relation))
        _add(node, "endpoint", ancestor.endpoint)
        _add(node, "revision", ancestor.revision)
        _add_licence(node, ancestor.licence, ancestor.licence_name, ancestor.licence_link)
        _add(node, "datasets", ancestor.datasets)
        if ancestor.files:
            node.rows.append((f"{len(ancestor.files)} files with their sha256", _who(ancestor.relation)))
        node.below = _ancestors(ancestors, place)
        nodes.append(node)
    return nodes


def _add_licence(node: _Node, licence: Statement, name: Statement, link: Statement) -> None:
    said = name if name.value is not None else licence
    _add(node, "licence", said, always=True)
    _add(node, "licence at", link)


def _add(node: _Node, label: str, statement: Statement, *, always: bool = False) -> None:
    if statement.value is not None or always:
        node.rows.append((f"{label}: {statement.value or 'unknown'}", _who(statement)))


def _who(statement: Statement) -> str:
    return f"{statement.said_by}, {statement.where}" if statement.where else statement.said_by


def _lines(node: _Node, lead: str, branch: str, stem: str) -> Iterable[tuple[str, str]]:
    yield from _cut(lead + branch + node.title, node.said_by)
    inner = lead + stem
    for text, who in node.rows:
        yield from _cut(f"{inner}{'│' if node.below else ' '}    {text}", who)
    for place, below in enumerate(node.below):
        last = place == len(node.below) - 1
        yield from _lines(below, inner, "└─ " if last else "├─ ", "   " if last else "│  ")


def _cut(left: str, right: str) -> Iterable[tuple[str, str]]:
    yield (left if len(left) <= _WIDEST else left[: _WIDEST - 1] + "…", right)
