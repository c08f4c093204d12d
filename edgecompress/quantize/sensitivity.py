"""Measures what each weight alone costs a graph's logits, and chooses the weights that get 8 bits (docs/adr/0008).

The float graph runs once for every weight, with only that weight quantized. Weights are initializers that a run may
override, and the nodes before them are not run again. This needs neither Hessians nor a second copy of the model; it
costs one run over a short text per weight.
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

TEXTS = 2  # calibration texts per weight
TOKENS = 64  # per text: more do not rank weights better (docs/adr/0008) and take longer

PART_BYTES = 2_000_000_000  # of weights mapped at a time
_STEPS = 200_000  # resolution of the knapsack: at most so many steps for all weights' sizes


@dataclass(frozen=True, kw_only=True)
class BitAllocation:
    """Which weights get 8 bits, by their names in :class:`Linear` and :class:`Embedding`."""

    raised: frozenset[str] = frozenset()
    costs: Mapping[str, float] = field(default_factory=dict)  # nats per position with only that weight in 4 bits
    blocks: Mapping[str, Blocks] = field(default_factory=dict, repr=False)  # ready blocks of layers that stay in 4 bits


UNIFORM = BitAllocation()
"""All weights have the same bits."""


class SingleWeightCost:
    """KL divergence of the logits from the float graph's, with one weight replaced at a time.

    The graph runs in parts of at most ``part_bytes`` of weights, starting at the part that reads the replaced weight.
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
            raise CalibrationError(
                "there is no calibration text", hint="Give --calibration FILE, with one text per line."
            )
        self._open: tuple[int, Part] | None = None
        # Inputs of every part, for each text: small compared with a weight.
        self._given: list[list[dict[str, Array]]] = [[{} for _ in self._feeds]]
        self._reference = self._run({}, 0, keep=True)

    def measure(self, replaced: Mapping[str, FloatArray]) -> float:
        """Mean KL divergence in nats per position with ``replaced``, name -> float32 weight, in place."""
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
        """The part at ``index``; only one part is open at a time."""
        if self._open is None or self._open[0] != index:
            self._open = None
            wanted = [self._output] if index == len(self._chain) - 1 else []
            self._open = index, self._chain.part(index, wanted, self._given[index][0], self._weights)
        return self._open[1]


def choose_raised(costs: Mapping[str, float], elements: Mapping[str, int], mean_bits: float) -> frozenset[str]:
    """The weights to store in 8 bits instead of 4, chosen to minimize the total cost of the others.

    ``costs`` and ``elements`` map each weight to its cost at 4 bits and its size; the mean bits over all elements stay
    at or below ``mean_bits``. Costs are assumed to add up, and to be negligible at 8 bits. This is a knapsack problem,
    solved exactly if the sizes' common divisor is at least 1/200,000 of their sum, as for most matrices; otherwise
    sizes are rounded up to such steps.
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
