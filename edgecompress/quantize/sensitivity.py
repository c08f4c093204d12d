"""What each weight alone costs a decoder's logits, and which weights deserve eight bits (docs/adr/0008).

The float graph runs once for every weight, with that one weight put in its rounded form and all others as they are. The
weights are initializers that a run may override, so one session serves all of them. No Hessian is needed and no second
copy of the model; the cost is one short text a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.errors import CalibrationError
from edgecompress.quantize.blockwise import Blocks
from edgecompress.quantize.hessians import Batches, FloatGraph
from edgecompress.quantize.numerics import Float
from edgecompress.verify.decoder import DecoderFidelity

TEXTS = 2  # calibration texts that a weight is measured on
TOKENS = 64  # of each of them: more do not rank better (docs/adr/0008), and each weight costs a run over them

_STEPS = 200_000  # of all weights' sizes that the choice reckons in, at most


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Which weights get 8 bits, by the names that :class:`Linear` and :class:`Embedding` give them."""

    raised: frozenset[str] = frozenset()
    costs: Mapping[str, float] = field(default_factory=dict)  # nats a position when that weight alone is in 4 bits
    blocks: Mapping[str, Blocks] = field(default_factory=dict, repr=False)  # made already, of layers left in 4 bits


UNIFORM = Mixed()
"""All weights in the same bits."""


class LoneCost:
    """KL divergence of the logits from those of the float graph, with one weight replaced at a time."""

    def __init__(self, runnable: ir.Model, weights: Sequence[str], batches: Batches) -> None:
        """``weights`` names initializers of ``runnable``, a float graph whose first output is the logits [1, T, V].

        ``batches`` gives the few texts that are run for every weight. Raises CalibrationError if there is none.
        """
        self._float = FloatGraph(runnable)
        self._session = self._float.session(overridable=weights)
        self._output = self._session.get_outputs()[0].name
        wanted = {i.name for i in self._session.get_inputs()}
        self._batches = [{name: value for name, value in batch.items() if name in wanted} for batch in batches()]
        if not self._batches:
            raise CalibrationError("there is no calibration text", way_out="Give --calibration FILE, one text a line.")
        self._reference = [self._logits(batch) for batch in self._batches]

    def measure(self, replaced: Mapping[str, Float]) -> float:
        """Mean KL divergence in nats a position when ``replaced``, name -> float32 of the weight's shape, is put in."""
        found = DecoderFidelity()
        for batch, reference in zip(self._batches, self._reference, strict=True):
            found.add(reference, self._logits({**batch, **replaced}))
        return max(found.kl / found.positions, 0.0)

    def _logits(self, feed: Mapping[str, npt.NDArray[Any]]) -> Float:
        logits: Float = self._session.run([self._output], dict(feed))[0]
        return logits.reshape(-1, logits.shape[-1])


def choose_raised(costs: Mapping[str, float], elements: Mapping[str, int], mean_bits: float) -> frozenset[str]:
    """The weights to store in 8 bits instead of 4, so that the costs of the others add up to the least.

    ``costs`` and ``elements`` map each weight to what it costs at 4 bits and to its size; the mean over all elements
    stays at or below ``mean_bits``. Costs are taken to add up, and those at 8 bits to be nothing beside those at 4: a
    knapsack, solved exactly where the sizes have a common divisor of a 200,000th of their sum or more, as matrices do;
    else sizes count in such steps, and the mean may be off by one a weight.
    """
    step = max(math.gcd(*elements.values()), sum(elements.values()) // _STEPS, 1)
    shares = {name: -(-elements[name] // step) for name in costs}
    capacity = int((mean_bits - 4) / 4 * sum(shares.values()) + 1e-6)
    saved = np.zeros(capacity + 1)
    taken: list[npt.NDArray[np.bool_]] = []
    for name, cost in costs.items():
        share = shares[name]
        take = np.zeros(capacity + 1, dtype=bool)
        if share <= capacity:
            with_it = saved[: capacity + 1 - share] + cost
            take[share:] = with_it > saved[share:]
            saved[share:] = np.where(take[share:], with_it, saved[share:])
        taken.append(take)
    raised: list[str] = []
    left = capacity
    for name, take in zip(reversed(list(costs)), reversed(taken), strict=True):
        if take[left]:
            raised.append(name)
            left -= shares[name]
    return frozenset(raised)
