"""``--precision auto`` and ``--accuracy-level auto``: which candidate to take. Pure arithmetic on what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompress.errors import QualityBudgetError
from edgecompress.kinds.base import MetricModule
from edgecompress.types.precision import FP32, PRECISIONS
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Candidate, Fidelity

_NOISE = 0.03  # speeds nearer than this are not ranked; fidelity decides between them


@dataclass(frozen=True, kw_only=True)
class Choice:
    index: int  # of the candidate that was taken
    table: tuple[Candidate, ...]  # all of them, with the verdicts

    @property
    def precision(self) -> str:
        return self.table[self.index].precision


def choose(candidates: Sequence[Candidate], quality: QualityRecipe, metric: MetricModule) -> Choice:
    """Take the fastest candidate within the budget, never one slower than fp32, and say why the others lost.

    Speeds are those over the first candidate. Where none is measured the order is fixed, and among equals the first is
    taken. Raises QualityBudgetError if none qualifies.
    """
    fp32 = next((c.speedup for c in candidates if c.precision == FP32), None)
    reasons = [_reason(c, quality, metric, fp32) for c in candidates]
    fit = [i for i, reason in enumerate(reasons) if not reason]
    if not fit:
        raise QualityBudgetError(
            "no candidate is within the quality budget: "
            + "; ".join(f"{_label(c)}: {reason}" for c, reason in zip(candidates, reasons, strict=True)),
            hint="Lower the budget (--min-fidelity, --max-kl, --min-top1, --max-perplexity-ratio).",
        )
    speeds = {i: speed for i in fit if (speed := candidates[i].speedup) is not None}
    if speeds:  # else this machine cannot stand for the target: its times would say nothing
        near = [i for i, speed in speeds.items() if speed >= max(speeds.values()) * (1 - _NOISE)]
        best = max(near, key=lambda i: _quality(candidates[i].fidelity, metric))
    else:
        best = min(fit, key=lambda i: PRECISIONS[candidates[i].precision].unmeasured_rank)
    verdicts = ["chosen" if i == best else reasons[i] or _lost(c, candidates[best]) for i, c in enumerate(candidates)]
    table = tuple(replace(c, verdict=verdict) for c, verdict in zip(candidates, verdicts, strict=True))
    return Choice(index=best, table=table)


def _label(candidate: Candidate) -> str:
    level = candidate.accuracy_level
    return candidate.precision if level is None else f"{candidate.precision} at accuracy level {level}"


def _reason(candidate: Candidate, quality: QualityRecipe, metric: MetricModule, fp32_speedup: float | None) -> str:
    if candidate.fidelity is None:
        return candidate.verdict or "refused"
    missed = metric.shortfall(candidate.fidelity, quality)
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


def _quality(fidelity: Fidelity | None, metric: MetricModule) -> float:
    return metric.quality(fidelity) if fidelity is not None else -math.inf


def require(
    fidelity: Fidelity,
    quality: QualityRecipe,
    metric: MetricModule,
    *,
    precision: str,
    costly: Sequence[str] = (),
) -> None:
    """Raise QualityBudgetError if the budget is missed, naming the layers that cost most."""
    missed = metric.shortfall(fidelity, quality)
    if missed is None:
        return
    named = f" The layers that cost most: {', '.join(costly)}." if costly else ""
    raise QualityBudgetError(
        f"{precision} misses the quality budget: {missed}.{named}",
        hint="Use --precision auto or a wider one, calibrate weights (--method gptq), or lower the budget "
        "(--min-fidelity, --max-kl, --min-top1, --max-perplexity-ratio).",
    )
