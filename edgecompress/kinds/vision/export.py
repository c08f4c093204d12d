"""One export of an image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecompress.capture.eager import run_module
from edgecompress.capture.model import load_model
from edgecompress.kinds.base import SampleSource
from edgecompress.kinds.one_pass import OnePassExport
from edgecompress.kinds.vision.capture import ImageEncoder, capture
from edgecompress.kinds.vision.image import image_settings
from edgecompress.kinds.vision.metric import measure
from edgecompress.kinds.vision.samples import image_feeds
from edgecompress.kinds.vision.settings import VisionSettings
from edgecompress.runtime.metrics import Outputs
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Content
from edgecompress.types.case import Case
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.report import Fidelity

_MOST_SAMPLES = 16  # synthetic images: more of them add no information


class ImageInputs:
    """Images as pixel values."""

    pad_token_id = 0  # nothing is padded

    def __init__(self, job: Job) -> None:
        self.job, self.student = job, job.student

    def samples(self) -> tuple[SampleSource, list[Feed], list[Feed]]:
        recipe = self.job.recipe
        calibration = image_feeds(self.student, min(recipe.calibration.samples, _MOST_SAMPLES), 0)
        held_out = image_feeds(self.student, min(recipe.quality.samples, _MOST_SAMPLES), 1)
        return SampleSource(text="synthetic images, no photographs"), calibration, held_out

    def capture(self, opset: int) -> Graph:
        return capture(self.student, self.job.folder, opset=opset)

    def reference(self, feeds: Sequence[Feed]) -> Outputs:
        return run_module(ImageEncoder(load_model(self.student, "eager"), self.student).eval(), feeds)

    def cases(self, feed: Feed) -> Mapping[Case, Feed]:
        return {
            Case(name=f"batch {batch}", sizes={"batch": batch}): {
                name: np.repeat(value, batch, axis=0) for name, value in feed.items()
            }
            for batch in (1, 8)
        }

    def measure(self, reference: Outputs, outputs: Outputs) -> Fidelity:
        return measure(self.student.task, reference, outputs)

    def settings(self) -> VisionSettings:
        return VisionSettings(image=image_settings(self.student), labels=self.student.labels)

    def files(self) -> Mapping[str, Content]:
        return {}


def begin(job: Job) -> OnePassExport:
    return OnePassExport(job, ImageInputs(job))
