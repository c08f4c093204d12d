"""Figures and budgets: cosine for vectors, KL divergence and top-1 agreement for heads."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity, Figure


def figures(fidelity: Fidelity) -> Sequence[Figure]:
    rows = (
        ("cosine", "mean cosine", fidelity.mean_cosine),
        ("min", "minimum cosine", fidelity.min_cosine),
        ("top-10", "top-10 neighbours kept", fidelity.top10_agreement),
        ("KL", "mean KL divergence, nats", fidelity.mean_kl),
        ("top-1", "top-1 agreement", fidelity.top1_agreement),
    )
    return [Figure(name=name, title=title, value=value) for name, title, value in rows if value is not None]


def quality(fidelity: Fidelity) -> float:
    return fidelity.mean_cosine if fidelity.mean_cosine is not None else -(fidelity.mean_kl or 0.0)


def shortfall(fidelity: Fidelity, quality: QualityRecipe) -> str | None:
    """Return why ``fidelity`` misses the budget, in a few words, or None if it meets the budget."""
    if fidelity.mean_cosine is not None and not fidelity.mean_cosine >= quality.min_fidelity:
        return f"mean cosine {fidelity.mean_cosine:.4f} is below {quality.min_fidelity:g}"
    if fidelity.mean_kl is not None and not fidelity.mean_kl <= quality.max_kl:
        return f"KL divergence {fidelity.mean_kl:.4f} is above {quality.max_kl:g}"
    if fidelity.top1_agreement is not None and not fidelity.top1_agreement >= quality.min_top1:
        return f"top-1 agreement {fidelity.top1_agreement:.3f} is below {quality.min_top1:g}"
    return None
