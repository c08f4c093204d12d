"""``--precision auto``: which candidate to take. Pure arithmetic on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompress.errors import QualityBudgetError
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Candidate, Fidelity
from edgecompress.verify.fidelity import shortfall

_NOISE = 0.03  # speeds nearer than this are not ranked; fidelity decides between them

# Where this machine cannot stand for the target, its times say nothing about it: the order is fixed.
UNMEASURED_ORDER = ("int8-dynamic", "int8-static", "int8-weights", "fp32", "int4-weights")


@dataclass(frozen=True, kw_only=True)
class Choice:
    precision: str
    table: tuple[Candidate, ...]


def choose(candidates: Sequence[Candidate], quality: QualityRecipe) -> Choice:
    """Take the fastest candidate within the budget, never one slower than fp32, and say why the others lost.

    Raises QualityBudgetError if none qualifies.
    """
    reasons = {c.precision: _reason(c, quality) for c in candidates}
    fit = [c for c in candidates if not reasons[c.precision]]
    if not fit:
        raise QualityBudgetError(
            "no candidate is within the quality budget: "
            + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
            way_out="Lower the budget (--min-fidelity, --max-kl, --min-top1).",
        )
    measured = [c for c in fit if c.speedup is not None]
    if measured:
        fastest = max(c.speedup or 0.0 for c in measured)
        near = [c for c in measured if (c.speedup or 0.0) >= fastest * (1 - _NOISE)]
        best = max(near, key=lambda c: _quality(c.fidelity))
    else:
        best = min(fit, key=lambda c: UNMEASURED_ORDER.index(c.precision))
    table = tuple(
        replace(c, verdict="chosen" if c is best else reasons[c.precision] or _lost(c, best)) for c in candidates
    )
    return Choice(precision=best.precision, table=table)


def _reason(candidate: Candidate, quality: QualityRecipe) -> str:
    if candidate.fidelity is None:
        return candidate.verdict or "refused"
    missed = shortfall(candidate.fidelity, quality)
    if missed:
        return missed
    if candidate.precision != "fp32" and candidate.speedup is not None and candidate.speedup < 1.0:
        return "slower than fp32"
    return ""


def _lost(candidate: Candidate, best: Candidate) -> str:
    if candidate.speedup is None or best.speedup is None:
        return "later in the order"
    if candidate.speedup >= best.speedup * (1 - _NOISE):
        return "as fast, further from the reference"
    return "slower"


def _quality(fidelity: Fidelity | None) -> float:
    if fidelity is None:
        return -1.0
    return fidelity.mean_cosine if fidelity.mean_cosine is not None else -(fidelity.mean_kl or 0.0)
