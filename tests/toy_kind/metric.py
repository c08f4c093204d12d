"""The largest error of a sum."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity, Figure

MOST = 0.01


def _error(fidelity: Fidelity) -> float:
    return fidelity.measures["largest_error"]


def figures(fidelity: Fidelity) -> Sequence[Figure]:
    return (Figure(name="largest error", title="largest error of a sum", value=_error(fidelity)),)


def quality(fidelity: Fidelity) -> float:
    return -_error(fidelity)


def shortfall(fidelity: Fidelity, quality: QualityRecipe) -> str | None:
    """The budget is the recipe's limit "largest_error"."""
    error, most = _error(fidelity), quality.limits.get("largest_error", MOST)
    return None if error <= most else f"a sum is wrong by {error:g}"
