"""Calibrates and quantizes one captured graph within a backend's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.stage import Calibrated, Calibration, calibrate, quantize
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.limits import WeightLimits
from edgecompress.types.precision import PRECISIONS


def every_layer(name: str) -> bool:
    return True


class Quantization:
    """One graph: calibrated once, quantized for each candidate."""

    def __init__(self, job: Job, name: str, captured: Graph, feeds: GraphFeeds, limits: WeightLimits) -> None:
        self.job, self.captured, self.feeds, self.limits = job, captured, feeds, limits
        self.folder = job.folder / name
        self.folder.mkdir(exist_ok=True)
        self.calibrated: Calibrated | None = None

    def calibrate(self) -> None:
        """Collect statistics of the layers' inputs, and smooth outliers if the kind of student allows it."""
        recipe = self.job.recipe
        if not self.feeds.smooths:
            recipe = replace(recipe, quantize=replace(recipe.quantize, smooth_alpha=0.0))
        self.calibrated = calibrate(
            self.captured,
            recipe,
            self.feeds.calibration,
            lower_model,
            self.folder,
            limits=self.limits,
        )

    def source(self, precision: str | None = None) -> Graph:
        """The portable float graph that a candidate is quantized from; None: the smoothed one, if there is one."""
        of_calibration = precision is None or PRECISIONS[precision].calibrated
        if self.calibrated is None or not of_calibration:
            return self.captured
        return replace(self.captured, path=self.calibrated.path)

    def quantize(self, precision: str, folder: Path, only: Callable[[str], bool] = every_layer) -> Graph:
        """Write ``quantized-<precision>.onnx``, with the layers quantized whose name satisfies ``only``."""
        calibration = Calibration(
            statistics=self.calibrated,
            batches=self.feeds.calibration,
            probes=self.feeds.probes,
            make_runnable=lower_model,
        )
        return quantize(
            self.captured,
            precision,
            self.job.recipe,
            folder,
            calibration=calibration,
            limits=self.limits,
            only=lambda linear: only(linear.name),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report."""
        if self.calibrated is None or not self.feeds.smooths:
            return ()
        return ("smoothed: " + ", ".join(self.calibrated.smoothed_layers),)
