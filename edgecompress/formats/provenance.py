"""Checks the ``[provenance]`` table of a recipe."""

from __future__ import annotations

import re
from datetime import date

from edgecompress.errors import RecipeError, nearest
from edgecompress.types.provenance import CONDITIONAL, POLICIES, STATUSES, ProvenanceRecipe

_URL = re.compile(r"[a-z][a-z0-9+.-]*:\S+", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.-]+")


def validate_provenance(recipe: ProvenanceRecipe) -> None:
    """Raises RecipeError for a value that is not valid."""
    for what, value, known in (("policy", recipe.policy, POLICIES), ("status", recipe.status, STATUSES)):
        if value is not None and value not in known:
            raise RecipeError(
                f"no provenance {what} named '{value}'.{nearest(value, known)}", hint=f"Known: {', '.join(known)}."
            )
    url, retrieved, sha256 = recipe.terms_url, recipe.terms_retrieved, recipe.terms_sha256
    prefix, accept = recipe.name_prefix, recipe.accept
    rules = (
        (
            recipe.status != CONDITIONAL or bool(recipe.conditions),
            "the provenance status is conditional, but no condition is given",
            'List the conditions in [provenance]: conditions = ["…"].',
        ),
        (
            url is None or _URL.fullmatch(url),
            f"terms_url is not a URL: '{url}'",
            "Give the full URL, as in https://example.com/terms.",
        ),
        (
            retrieved is None or _is_date(retrieved),
            f"terms_retrieved is not a date: '{retrieved}'",
            "Give year-month-day, as in 2026-11-27.",
        ),
        (
            sha256 is None or _SHA256.fullmatch(sha256),
            "terms_sha256 is not 64 hexadecimal digits",
            "Compute it with `sha256sum FILE` from the text that you read.",
        ),
        (
            prefix is None or _NAME.fullmatch(prefix),
            f"name_prefix is not valid in a model's name: '{prefix}'",
            "Use letters, digits, '.', '-' and '_'.",
        ),
        (
            accept is None or bool(accept.strip()),
            "a reason is needed to accept what the policy refuses, but it is empty",
            'Give the reason: --accept "reason".',
        ),
    )
    for holds, message, hint in rules:
        if not holds:
            raise RecipeError(message, hint=hint)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
