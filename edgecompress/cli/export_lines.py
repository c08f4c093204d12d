"""Candidates, kernels and fidelity of an export, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress.terminal import table
from edgecompress.types.report import Candidate, Fidelity, KernelUse

if TYPE_CHECKING:
    from edgecompress.kinds.base import MetricModule


def candidate_table(candidates: tuple[Candidate, ...], metric: MetricModule) -> str:
    """The candidates; where accuracy levels were measured, with the time of every shape, else of the last one."""
    levels = any(c.accuracy_level is not None for c in candidates)
    shapes = next((sorted(c.shapes_ms) for c in candidates if c.shapes_ms), []) if levels else []
    rows = []
    for c in candidates:
        last = f"{c.latency_ms:.2f}" if c.latency_ms is not None else "—"
        times = [f"{c.shapes_ms[shape]:.2f}" if c.shapes_ms else "—" for shape in shapes] or [last]
        rows.append(
            [
                c.precision,
                *([str(c.accuracy_level) if c.accuracy_level is not None else "—"] if levels else []),
                describe(c.fidelity, metric) if c.fidelity else "—",
                f"{c.speedup:.2f}x" if c.speedup is not None else "—",
                *times,
                f"{c.model_bytes / 1e6:.1f}" if c.model_bytes else "—",
                c.verdict,
            ]
        )
    first = candidates[0]
    versus = first.precision if first.accuracy_level is None else f"level {first.accuracy_level}"
    measured = [f"{shape} ms" for shape in shapes] or ["ms"]
    return table(
        ["precision", *(["level"] if levels else []), "fidelity", f"vs {versus}", *measured, "MB", "verdict"], rows
    )


def kernel_table(uses: tuple[KernelUse, ...]) -> str:
    """The kernels of edgecompress beside ONNX Runtime's ops: where they are used, and how much faster they are."""
    rows = []
    for use in uses:
        speeds = ", ".join(f"{label} {ratio:.2f}x" for label, ratio in use.speedups.items())
        rows.append([use.kernel, use.what, str(use.nodes), "ours" if use.used else "stock", speeds or "—", use.reason])
    return table(["kernel", "of", "nodes", "used", "over ONNX Runtime's op", "why"], rows)


def describe(fidelity: Fidelity, metric: MetricModule) -> str:
    """The figures that apply to the task, in one line."""
    return ", ".join(f"{figure.name} {figure.value:.4f}" for figure in metric.figures(fidelity))
