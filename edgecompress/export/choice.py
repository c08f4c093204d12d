"""``--precision auto`` and ``--accuracy-level auto``: which candidate to take. Pure arithmetic on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompress.errors import QualityBudgetError
from edgecompress.runtime.metrics import shortfall
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Candidate, Fidelity

_NOISE = 0.03  # speeds nearer than this are not ranked; fidelity decides between them

# Where this machine cannot stand for the target, its times say nothing about it: the order is fixed.
UNMEASURED_ORDER = ("int8-dynamic", "int8-static", "int8-weights", "fp32", "int4-weights", "mixed-weights")


@dataclass(frozen=True, kw_only=True)
class Choice:
    index: int  # of the candidate that was taken
    table: tuple[Candidate, ...]  # all of them, with the verdicts

    @property
    def precision(self) -> str:
        return self.table[self.index].precision


def choose(candidates: Sequence[Candidate], quality: QualityRecipe) -> Choice:
    """Take the fastest candidate within the budget, never one slower than fp32, and say why the others lost.

    Speeds are those over the first candidate. Where none is measured the order is fixed, and among equals the first is
    taken. Raises QualityBudgetError if none qualifies.
    """
    fp32 = next((c.speedup for c in candidates if c.precision == "fp32"), None)
    reasons = [_reason(c, quality, fp32) for c in candidates]
    fit = [i for i, reason in enumerate(reasons) if not reason]
    if not fit:
        raise QualityBudgetError(
            "no candidate is within the quality budget: "
            + "; ".join(f"{_label(c)}: {reason}" for c, reason in zip(candidates, reasons, strict=True)),
            hint="Lower the budget (--min-fidelity, --max-kl, --min-top1, --max-perplexity-ratio).",
        )
    speeds = {i: speed for i in fit if (speed := candidates[i].speedup) is not None}
    if speeds:
        near = [i for i, speed in speeds.items() if speed >= max(speeds.values()) * (1 - _NOISE)]
        best = max(near, key=lambda i: _quality(candidates[i].fidelity))
    else:
        best = min(fit, key=lambda i: UNMEASURED_ORDER.index(candidates[i].precision))
    verdicts = ["chosen" if i == best else reasons[i] or _lost(c, candidates[best]) for i, c in enumerate(candidates)]
    table = tuple(replace(c, verdict=verdict) for c, verdict in zip(candidates, verdicts, strict=True))
    return Choice(index=best, table=table)


def _label(candidate: Candidate) -> str:
    level = candidate.accuracy_level
    return candidate.precision if level is None else f"{candidate.precision} at accuracy level {level}"


def _reason(candidate: Candidate, quality: QualityRecipe, fp32_speedup: float | None) -> str:
    if candidate.fidelity is None:
        return candidate.verdict or "refused"
    missed = shortfall(candidate.fidelity, quality)
    if missed:
        return missed
    if candidate.speedup is not None and candidate.speedup < (fp32_speedup or 0.0):
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
