"""Chooses a candidate for ``--precision auto`` and ``--accuracy-level auto``, from measured numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompress.errors import QualityBudgetError
from edgecompress.kinds.base import MetricModule
from edgecompress.types.precision import FP32, PRECISIONS
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Candidate, Fidelity

_NOISE = 0.03  # speeds within this share count as equal; fidelity decides between them


@dataclass(frozen=True, kw_only=True)
class Choice:
    index: int  # of the chosen candidate
    table: tuple[Candidate, ...]  # all candidates, with verdicts

    @property
    def precision(self) -> str:
        return self.table[self.index].precision


def choose(candidates: Sequence[Candidate], quality: QualityRecipe, metric: MetricModule) -> Choice:
    """Choose the fastest candidate within the budget, never one slower than fp32, and record why the others lost.

    Speeds are relative to the first candidate. If none is measured, ``Precision.unmeasured_rank`` decides, and the
    first of equals wins. Raises QualityBudgetError if none qualifies.
    """
    fp32 = next((c.speedup for c in candidates if c.precision == FP32), None)
    reasons = [_reason(c, quality, metric, fp32) for c in candidates]
    fit = [i for i, reason in enumerate(reasons) if not reason]
    if not fit:
        raise QualityBudgetError(
            "no candidate is within the quality budget: "
            + "; ".join(f"{_label(c)}: {reason}" for c, reason in zip(candidates, reasons, strict=True)),
            hint="Relax the quality budget (--min-fidelity, --max-kl, --min-top1, --max-perplexity-ratio).",
        )
    speeds = {i: speed for i in fit if (speed := candidates[i].speedup) is not None}
    if speeds:  # nothing is measured if this machine does not match the target
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
        return "not measured, ranked lower"
    if candidate.speedup >= best.speedup * (1 - _NOISE):
        return "as fast, less accurate"
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
    """Raises QualityBudgetError, naming the most costly layers, if the budget is missed."""
    missed = metric.shortfall(fidelity, quality)
    if missed is None:
        return
    named = f" Most costly layers: {', '.join(costly)}." if costly else ""
    raise QualityBudgetError(
        f"{precision} misses the quality budget: {missed}.{named}",
        hint="Use --precision auto or more bits, calibrate the weights (--method gptq), or relax the quality budget "
        "(--min-fidelity, --max-kl, --min-top1, --max-perplexity-ratio).",
    )
