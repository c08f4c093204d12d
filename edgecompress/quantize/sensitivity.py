"""What each weight alone costs a graph's logits, and which weights deserve eight bits (docs/adr/0008).

The float graph runs once for every weight, with that one weight put in its rounded form and all others as they are. The
weights are initializers that a run may override, and what lies before them is not run again. No Hessian is needed and
no second copy of the model; the cost is one short text a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.errors import CalibrationError
from edgecompress.graph.blocks import Blocks
from edgecompress.quantize.parts import Chain, FloatGraph, Part, ends_by_weight, readers
from edgecompress.runtime.metrics import divergences
from edgecompress.types.arrays import Array, Batches, FloatArray

TEXTS = 2  # calibration texts that a weight is measured on
TOKENS = 64  # of each of them: more do not rank better (docs/adr/0008), and each weight costs a run over them

PART_BYTES = 2_000_000_000  # of weights that are mapped at a time
_STEPS = 200_000  # of all weights' sizes that the choice reckons in, at most


@dataclass(frozen=True, kw_only=True)
class BitAllocation:
    """Which weights get 8 bits, by the names that :class:`Linear` and :class:`Embedding` give them."""

    raised: frozenset[str] = frozenset()
    costs: Mapping[str, float] = field(default_factory=dict)  # nats a position when that weight alone is in 4 bits
    blocks: Mapping[str, Blocks] = field(default_factory=dict, repr=False)  # made already, of layers left in 4 bits


UNIFORM = BitAllocation()
"""All weights in the same bits."""


class LoneCost:
    """KL divergence of the logits from those of the float graph, with one weight replaced at a time.

    The graph is run in parts of at most ``part_bytes`` of weights, and from the part that reads the replaced weight on.
    """

    def __init__(
        self, runnable: ir.Model, weights: Sequence[str], batches: Batches, *, part_bytes: int = PART_BYTES
    ) -> None:
        """``weights`` names initializers of ``runnable``, a float graph whose first output is the logits [1, T, V].

        ``batches`` gives the few texts that are run for every weight. Raises CalibrationError if there is none.
        """
        self._float, self._weights = FloatGraph(runnable), list(weights)
        model = self._float.model
        self._chain = Chain(model, ends_by_weight(model, part_bytes))
        self._output = model.graph.outputs[0].name or ""
        self._first = {name: min(map(self._chain.part_of, readers(model, name))) for name in weights}
        self._feeds = list(batches())
        if not self._feeds:
            raise CalibrationError("there is no calibration text", hint="Give --calibration FILE, one text a line.")
        self._open: tuple[int, Part] | None = None
        # What every part is given, of each text: small beside a weight.
        self._given: list[list[dict[str, Array]]] = [[{} for _ in self._feeds]]
        self._reference = self._run({}, 0, keep=True)

    def measure(self, replaced: Mapping[str, FloatArray]) -> float:
        """Mean KL divergence in nats a position when ``replaced``, name -> float32 of the weight's shape, is put in."""
        total = 0.0
        logits = self._run(replaced, min(self._first[name] for name in replaced))
        for reference, other in zip(self._reference, logits, strict=True):
            for divergence in divergences(reference, other):
                total += divergence
        return max(total / sum(map(len, self._reference)), 0.0)

    def _run(self, replaced: Mapping[str, FloatArray], first: int, *, keep: bool = False) -> list[FloatArray]:
        """The logits float32 [T, V] of each text, from part ``first`` on."""
        carried, found = self._given[first], []
        for index in range(first, len(self._chain)):
            part = self._part(index)
            results = [
                part.run({**feed, **replaced}, before) for feed, before in zip(self._feeds, carried, strict=True)
            ]
            carried = [behind for _, behind in results]
            found = [wanted for wanted, _ in results]
            if keep:
                self._given.append(carried)
        return [wanted[0].reshape(-1, wanted[0].shape[-1]) for wanted in found]

    def _part(self, index: int) -> Part:
        """One part is open at a time."""
        if self._open is None or self._open[0] != index:
            self._open = None
            wanted = [self._output] if index == len(self._chain) - 1 else []
            self._open = index, self._chain.part(index, wanted, self._given[index][0], self._weights)
        return self._open[1]


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
