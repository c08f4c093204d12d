"""What in ``[provenance]`` makes no sense."""

from __future__ import annotations

import re
from datetime import date

from edgecompress.errors import RecipeError, nearest
from edgecompress.types.provenance import CONDITIONAL, POLICIES, STATUSES, ProvenanceRecipe

_URL = re.compile(r"[a-z][a-z0-9+.-]*:\S+", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.-]+")


def validate_provenance(recipe: ProvenanceRecipe) -> None:
    """Raises RecipeError for a value that cannot be meant."""
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
            "the status is conditional, and no condition is said",
            'Say each in words: conditions = ["…"] in [provenance].',
        ),
        (url is None or _URL.fullmatch(url), f"terms_url is no URL: '{url}'", "Give it whole: https://…"),
        (
            retrieved is None or _is_date(retrieved),
            f"terms_retrieved is no date: '{retrieved}'",
            "Give year-month-day, as in 2026-11-27.",
        ),
        (
            sha256 is None or _SHA256.fullmatch(sha256),
            "terms_sha256 is not 64 hexadecimal digits",
            "`sha256sum` of the text as you read it says it.",
        ),
        (
            prefix is None or _NAME.fullmatch(prefix),
            f"name_prefix cannot begin a model's name: '{prefix}'",
            "Letters, digits, '.', '-' and '_' can.",
        ),
        (
            accept is None or bool(accept.strip()),
            "a reason is needed to accept what the policy refuses, and an empty one was given",
            'Say it: --accept "reason".',
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
