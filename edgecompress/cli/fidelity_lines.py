"""Fidelity in the words of the bundle's kind."""

from __future__ import annotations

from edgecompress.kinds.base import Kind
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity

# For whoever merges this: as soon as every kind's metric.py has figures() and shortfall(), both functions are their
# first branch, cli.export.describe is this module's, and runtime.metrics.shortfall goes.


def describe(kind: Kind, fidelity: Fidelity) -> str:
    """The figures that apply to the task, in one line."""
    from edgecompress.cli.export import describe

    if _has(kind, "figures"):
        return ", ".join(f"{label} {value:.4f}" for label, value in kind.metric.figures(fidelity))
    return describe(fidelity)


def shortfall(kind: Kind, fidelity: Fidelity, quality: QualityRecipe) -> str | None:
    """Why it misses the budget; None if it does not."""
    from edgecompress.runtime.metrics import shortfall

    if _has(kind, "shortfall"):
        return kind.metric.shortfall(fidelity, quality)
    return shortfall(fidelity, quality)


def _has(kind: Kind, function: str) -> bool:
    return kind.has("metric") and hasattr(kind.metric, function)
