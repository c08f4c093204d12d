"""Compares a decoder with its reference on held-out token sequences. NumPy only.

The logits of one sequence of a large vocabulary take hundreds of megabytes, so they are processed in slices and never
copied whole. Sums are float64, so that reports do not depend on the order of the sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.runtime.metrics import log_softmax, row_slices, summed_divergence
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity, Figure

Logits = npt.NDArray[Any]  # [positions, vocabulary]

_DIGITS = 6  # of report figures; further digits vary with the summation order
_LARGEST = 1e300  # limit of a reported perplexity ratio: JSON has no infinity


@dataclass(kw_only=True)
class DecoderFidelity:
    """Running sums over positions: add sequences, then call :meth:`fidelity`."""

    sequences: int = 0
    positions: int = 0
    scored: int = 0  # positions with a following token
    reference_nll: float = 0.0  # nats
    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0
    largest_difference: float = 0.0

    def add(self, reference: Logits, logits: Logits, targets: npt.NDArray[np.int64] | None = None) -> None:
        """Add one sequence, or a part of one.

        ``reference`` and ``logits``: [T, V] at the same positions. ``targets``: int64 [<= T], the token that follows
        each position, starting at the first; the last position of a text has none. A position with non-finite logits
        counts as uniform, with a wrong first choice. Raises ValueError for shapes that do not match.
        """
        if reference.shape != logits.shape or reference.ndim != 2:
            raise ValueError(f"logits of shapes {reference.shape} and {logits.shape} cannot be compared")
        targets = targets if targets is not None else np.zeros(0, dtype=np.int64)
        if len(targets) > len(reference):
            raise ValueError(f"{len(targets)} targets for {len(reference)} positions")
        for part in row_slices(*reference.shape):
            self._add_slice(reference[part], logits[part], targets[part])
        self.sequences += 1

    def _add_slice(self, reference: Logits, logits: Logits, targets: npt.NDArray[np.int64]) -> None:
        p, q = reference.astype(np.float64), logits.astype(np.float64)
        broken = ~np.isfinite(q).all(axis=1)
        q[broken] = 0.0
        self.agreed += int(((p.argmax(1) == q.argmax(1)) & ~broken).sum())
        difference = float(np.abs(p - q).max(initial=0.0))
        self.largest_difference = max(self.largest_difference, math.inf if broken.any() else difference)
        p, q = log_softmax(p), log_softmax(q)
        rows = np.arange(len(targets))
        self.reference_nll -= float(p[rows, targets].sum())
        self.nll -= float(q[rows, targets].sum())
        self.kl += summed_divergence(p, q)
        self.positions += len(p)
        self.scored += len(targets)

    @property
    def reference_perplexity(self) -> float:
        return _perplexity(self.reference_nll, self.scored)

    @property
    def perplexity(self) -> float:
        return _perplexity(self.nll, self.scored)

    def fidelity(self) -> Fidelity:
        """Return the figures so far. Raises ValueError if no position has a following token."""
        if not self.scored:
            raise ValueError("perplexity needs a sequence of at least two tokens")
        ratio = _perplexity(self.nll - self.reference_nll, self.scored)
        largest = self.largest_difference
        return Fidelity(
            samples=self.sequences,
            perplexity_ratio=round(min(ratio, _LARGEST), _DIGITS),
            mean_kl=round(max(self.kl / self.positions, 0.0), _DIGITS),
            top1_agreement=round(self.agreed / self.positions, _DIGITS),
            max_abs_difference=float(f"{largest:.2e}") if math.isfinite(largest) else None,
        )


def _perplexity(nll: float, positions: int) -> float:
    try:
        return math.exp(nll / positions)
    except OverflowError:
        return math.inf


def measure(pairs: Iterable[tuple[Logits, Logits, npt.NDArray[np.int64]]]) -> Fidelity:
    """Compare ``(reference logits [T, V], logits [T, V], token ids [T])`` of held-out texts, one at a time.

    Position t is scored on token t + 1. Pass a generator to keep only one pair in memory.
    """
    found = DecoderFidelity()
    for reference, logits, ids in pairs:
        found.add(reference, logits, ids[1:])
    return found.fidelity()


def figures(fidelity: Fidelity) -> Sequence[Figure]:
    rows = (
        ("perplexity ratio", "perplexity ratio", fidelity.perplexity_ratio),
        ("KL", "mean KL divergence, nats", fidelity.mean_kl),
        ("top-1", "top-1 agreement", fidelity.top1_agreement),
    )
    return [Figure(name=name, title=title, value=value) for name, title, value in rows if value is not None]


def quality(fidelity: Fidelity) -> float:
    return -(fidelity.mean_kl or 0.0)


def shortfall(fidelity: Fidelity, quality: QualityRecipe) -> str | None:
    """Return why ``fidelity`` misses the budget, in a few words, or None if it meets the budget.

    Top-1 agreement has no budget for a decoder: tokens are sampled, so the order of almost equal ones matters little.
    """
    if fidelity.mean_kl is not None and not fidelity.mean_kl <= quality.max_kl:
        return f"KL divergence {fidelity.mean_kl:.4f} is above {quality.max_kl:g}"
    ratio = fidelity.perplexity_ratio
    if ratio is not None and not ratio <= quality.max_perplexity_ratio:
        return f"perplexity ratio {ratio:.4f} is above {quality.max_perplexity_ratio:g}"
    return None
