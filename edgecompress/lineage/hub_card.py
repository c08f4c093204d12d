"""Lineage for the hub's model cards: front matter with the keys that the hub knows, and prose for the rest."""

from __future__ import annotations

from typing import Any

import yaml

from edgecompress.types.provenance import Lineage, Statement

_LICENCE_KEYS = {"license": "licence", "license_name": "licence_name", "license_link": "licence_link"}


def licence_metadata(lineage: Lineage) -> dict[str, Any]:
    """Only what the checkpoint's own card says; no licence is chosen."""
    said = {key: getattr(lineage, name).value for key, name in _LICENCE_KEYS.items()}
    return {key: value for key, value in said.items() if value is not None}


def bundle_metadata(lineage: Lineage) -> dict[str, Any]:
    """Front matter of a bundle: its base model is the checkpoint, its relation "quantized"."""
    return {**licence_metadata(lineage), "base_model": lineage.source.value, "base_model_relation": "quantized"}


def checkpoint_metadata(lineage: Lineage) -> dict[str, Any]:
    """Front matter of a checkpoint. The hub has no relation for distillation: given only if the card has one."""
    found = licence_metadata(lineage)
    if lineage.base_model.value is not None:
        bases = lineage.base_model.value.split(", ")
        found["base_model"] = bases[0] if len(bases) == 1 else bases
    if lineage.base_model_relation.value is not None:
        found["base_model_relation"] = lineage.base_model_relation.value
    if lineage.datasets.value is not None:
        found["datasets"] = lineage.datasets.value.split(", ")
    return found


def front_matter(metadata: dict[str, Any]) -> str:
    content = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{content}---\n"


def prose(lineage: Lineage) -> list[str]:
    """Markdown lines: ancestors, terms, and the source of each statement. What nobody states is omitted."""
    name = lineage.source.value
    lines = ["## Where it comes from", ""]
    for ancestor in lineage.ancestors:
        of = name if ancestor.of is None else lineage.ancestors[ancestor.of].name
        licence = ancestor.licence_name.value or ancestor.licence.value
        terms = f"licence {licence}" if licence else "licence unknown"
        who = ancestor.relation.said_by
        lines.append(f"- {of}: {ancestor.relation.value} {_code(ancestor.name)}, {terms} ({who})")
    teaching = lineage.distillation
    if teaching is not None:
        who = "verified: the record matches these weights" if teaching.verified else "declared"
        given = teaching.responses
        stored = f", with {given.responses} responses from {_code(given.name)}" if given is not None else ""
        lines.append(f"- {name}: distilled, {teaching.method}, on {_code(teaching.data)}{stored} ({who})")
    if not lineage.ancestors and teaching is None:
        lines.append(f"- {name}: no known ancestor")
    lines += ["", f"Licence of {name}: {_words(_licence(lineage))}. Terms: {_words(lineage.status)}."]
    for entry in lineage.terms:
        said = [f"teacher {entry.teacher}" if entry.teacher else "", f"data {entry.data}" if entry.data else ""]
        said.append(f"terms at {entry.url}" if entry.url else "")
        said.append(f"retrieved {entry.retrieved}" if entry.retrieved else "")
        said.append(f"sha256 {entry.sha256}" if entry.sha256 else "")
        told = [text for text in said if text]
        if told:
            lines.append(f"Declared for {entry.of} in {entry.where}: {', '.join(told)}.")
        lines += [f"- condition: {condition}" for condition in entry.conditions]
    if lineage.accepted.value is not None:
        lines.append(f"Exported although the policy objects, for this reason: {lineage.accepted.value}")
    if lineage.proposed_name.value is not None:
        lines.append(f"Name required by the terms: {_code(lineage.proposed_name.value)}.")
    if lineage.licences:
        lines.append(f"Licence and notice files: {', '.join(map(_code, sorted(lineage.licences)))}.")
    return [*lines, ""]


def _licence(lineage: Lineage) -> Statement:
    return lineage.licence_name if lineage.licence_name.value is not None else lineage.licence


def _words(statement: Statement) -> str:
    return f"{statement.value} ({statement.said_by})" if statement.value is not None else "unknown"


def _code(text: str) -> str:
    return f"`{text}`"
