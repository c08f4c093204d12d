"""Compares sums with those in the bundle."""

from __future__ import annotations

from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.self_check import Outputs, check_outputs
from edgecompress.types.report import Fidelity


def check(source: OpenBundle) -> Fidelity:
    return check_outputs(source, measure)


def measure(reference: Outputs, outputs: Outputs) -> Fidelity:
    largest = max(float(abs(a[0] - b[0]).max()) for a, b in zip(reference, outputs, strict=True))
    return Fidelity(samples=len(reference), measures={"largest_error": largest})
