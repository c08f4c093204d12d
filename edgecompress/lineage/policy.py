"""The provenance policy: what ``enforce`` refuses and ``warn`` reports. It judges no licence."""

from __future__ import annotations

from edgecompress.errors import ProvenanceError
from edgecompress.lineage.card import is_licence
from edgecompress.types.provenance import CONDITIONAL, ENFORCE, NOT_KNOWN, PERMITTED, RESTRICTED, WARN, Lineage

_DECLARE = (
    'Declare it in the recipe: [provenance] with status = "permitted", or "conditional" with conditions, and the '
    "terms_url that you read"
)
_ACCEPT = 'use --accept "reason", which continues and records the reason in the bundle.'


def objection(lineage: Lineage) -> str | None:
    """Why ``enforce`` refuses, in one line; None if it does not refuse."""
    name, status = lineage.source.value, lineage.status
    if status.value == RESTRICTED:
        return f"the terms of {name} are declared restricted ({status.where})"
    if status.value == NOT_KNOWN:
        return f"the terms of {name} are declared unknown ({status.where})"
    if status.value in (PERMITTED, CONDITIONAL):
        return None
    for ancestor in lineage.ancestors:
        if ancestor.relation.value == "teacher" and not is_licence(ancestor.licence, ancestor.licence_name):
            taught = name if ancestor.of is None else lineage.ancestors[ancestor.of].name
            return f"{taught} was distilled from {ancestor.name} under unknown terms"
    if any(remark.startswith("distillation.json") and "cannot be read" in remark for remark in lineage.remarks):
        return f"the distillation record of {name} cannot be read, and its terms are unknown"
    if is_licence(lineage.licence, lineage.licence_name):
        return None
    said = "its card names no licence" if "README.md" in lineage.files else "it has no card"
    return f"the terms of {name} are unknown: {said}, and nothing is declared"


def check(lineage: Lineage, policy: str) -> str | None:
    """A one-line warning for stderr, or None. Raises ProvenanceError if ``enforce`` refuses."""
    why = objection(lineage)
    accepted = lineage.accepted.value
    if policy == ENFORCE and why is not None and accepted is None:
        raise ProvenanceError(why, hint=f"{_DECLARE}; or {_ACCEPT}")
    if policy not in (WARN, ENFORCE):
        return None
    said = [*([why] if why is not None else []), *lineage.remarks]
    if why is not None and accepted is not None:
        said.append(f'accepted, and recorded: "{accepted}"')
    return f"provenance: {'; '.join(said)}" if said else None
