"""Computes the Hessians for GPTQ, ``X^T X`` of each layer's inputs over the calibration text, in bounded memory.

A Hessian has K x K entries; all of a 1.5 B decoder's would take 10 GB. :class:`StreamedHessians` holds one group of
layers at a time and runs the parts of the graph one after another, so the text passes through the graph only once.
Inputs come from the float graph, not from one whose earlier layers are already quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from edgecompress.errors import CalibrationError
from edgecompress.quantize.parts import Chain, FloatGraph, Part, places
from edgecompress.types.arrays import Array, Batches, Feed, FloatArray

GROUP_BYTES = 1_000_000_000  # of Hessians in memory at a time; factoring the largest takes as much again
_ROWS = 1024  # collected before they are multiplied: with few rows, writing the sums is the bottleneck
_TILE = 2048  # channels: only the tiles on and above the diagonal are computed


class StreamedHessians(Mapping[str, FloatArray]):
    """Name of a tensor [..., K] -> float32 [K, K], the mean of ``x^T x`` over all rows.

    Read them in the order in which the graph computes the tensors: reading one computes its whole group and drops the
    previous group, and reading one of an earlier group starts over. A group is as many neighbours as fit in
    ``group_bytes``, and at least one. A batch maps input names to arrays; rows that are padding by its
    ``attention_mask`` are left out. Raises CalibrationError if there is no batch or a value is not finite.
    """

    def __init__(
        self, runnable: ir.Model, tensors: Mapping[str, int], batches: Batches, *, group_bytes: int = GROUP_BYTES
    ) -> None:
        self._float, self._batches = FloatGraph(runnable), batches
        self._tensors = dict(tensors)
        made = places(self._float.model, list(tensors))
        self._groups = groups({name: self._tensors[name] for name in sorted(made, key=made.__getitem__)}, group_bytes)
        ends = [max(made[name] for name in group) + 1 for group in self._groups]
        self._chain = Chain(self._float.model, ends)
        self._next = 0  # the group that can be computed from the carried arrays
        self._carried: list[dict[str, Array]] = []
        self._held: dict[str, FloatArray] = {}

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._tensors:
            raise KeyError(name)
        if name not in self._held:
            wanted = next(i for i, group in enumerate(self._groups) if name in group)
            if wanted < self._next:
                self._next, self._carried = 0, []
            while self._next <= wanted:
                self._held = {}  # free the old group before computing the next
                self._held = self._advance()
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _advance(self) -> dict[str, FloatArray]:
        """Run the next group's part; return the group's Hessians."""
        group = self._groups[self._next]
        sums = {name: _Sum(self._tensors[name]) for name in group}
        part: Part | None = None
        carried = []
        for index, batch in enumerate(self._batches()):
            before: Feed = self._carried[index] if self._next else {}
            part = part or self._chain.part(self._next, group, before)
            found, behind = part.run(batch, before)
            carried.append(behind)
            mask = batch.get("attention_mask")
            for name, x in zip(group, found, strict=True):
                real = x[mask.astype(bool)] if mask is not None and x.shape[:2] == mask.shape else x
                sums[name].add(np.ascontiguousarray(real.reshape(-1, self._tensors[name]), dtype=np.float32))
        self._next, self._carried = self._next + 1, carried
        return {name: total.mean(name) for name, total in sums.items()}


class _Sum:
    """Sum of ``x^T x`` over the added rows, float32 [K, K]."""

    def __init__(self, width: int) -> None:
        self._total = np.zeros((width, width), dtype=np.float32)
        self._waiting: list[FloatArray] = []
        self._rows = 0

    def add(self, rows: FloatArray) -> None:
        self._rows += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._multiply()

    def _multiply(self) -> None:
        x = np.concatenate(self._waiting)
        self._waiting = []
        for i in range(0, x.shape[1], _TILE):
            for j in range(i, x.shape[1], _TILE):
                self._total[i : i + _TILE, j : j + _TILE] += x[:, i : i + _TILE].T @ x[:, j : j + _TILE]

    def mean(self, name: str) -> FloatArray:
        if not self._rows:
            raise CalibrationError(
                "there is no calibration text", hint="Give --calibration FILE, with one text per line."
            )
        if self._waiting:
            self._multiply()
        total = self._total
        for i in range(0, len(total), _TILE):
            total[i + _TILE :, i : i + _TILE] = total[i : i + _TILE, i + _TILE :].T
        if not np.isfinite(total).all():
            raise CalibrationError(
                f"the student's values at '{name}' are not finite on the calibration text",
                hint="Give another checkpoint or another calibration text; one of the two is broken.",
            )
        total /= self._rows
        return total


def groups(tensors: Mapping[str, int], group_bytes: int) -> list[tuple[str, ...]]:
    """Groups of neighbours whose Hessians take at most ``group_bytes`` together, or a single larger one."""
    found: list[tuple[str, ...]] = []
    current: list[str] = []
    held = 0
    for name, width in tensors.items():
        size = 4 * width * width
        if current and held + size > group_bytes:
            found.append(tuple(current))
            current, held = [], 0
        current.append(name)
        held += size
    return [*found, tuple(current)] if current else found
