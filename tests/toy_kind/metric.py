"""The largest error of a sum."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity

MOST = 0.01


def figures(fidelity: Fidelity) -> Sequence[tuple[str, float]]:
    return (("largest error", fidelity.max_abs_difference or 0.0),)


def shortfall(fidelity: Fidelity, quality: QualityRecipe) -> str | None:
    error = fidelity.max_abs_difference or 0.0
    return None if error <= MOST else f"a sum is wrong by {error:g}"
