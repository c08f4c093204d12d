"""One export of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecompress.capture.tokenizer import save_tokenizer, text_settings
from edgecompress.kinds.base import SampleSource
from edgecompress.kinds.encoder.capture import capture
from edgecompress.kinds.encoder.metric import measure
from edgecompress.kinds.encoder.reference import reference_outputs
from edgecompress.kinds.encoder.samples import text_feeds
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.kinds.one_pass import OnePassExport
from edgecompress.quantize.texts import load_texts
from edgecompress.runtime.metrics import Outputs
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Content
from edgecompress.types.case import Case
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.report import Fidelity

_TIMED = ((1, 16), (1, 128), (8, 128))  # batch, tokens


class TextInputs:
    """Texts as token ids."""

    def __init__(self, job: Job) -> None:
        self.job, self.student = job, job.student
        self.tokenizer = save_tokenizer(job.student, job.folder)
        self.text = text_settings(job.student, self.tokenizer)
        self.pad_token_id = self.text.pad_token_id

    def samples(self) -> tuple[SampleSource, list[Feed], list[Feed]]:
        calibration = self.job.recipe.calibration
        texts = load_texts(calibration, self.job.recipe.quality.samples)
        chosen, held_out = (
            text_feeds(self.tokenizer, self.student, some, calibration.max_length_tokens)
            for some in (texts.calibration, texts.held_out)
        )
        source = SampleSource(text=f"{texts.source} (sha256 {texts.sha256})", sha256=texts.sha256)
        return source, chosen, held_out

    def capture(self, opset: int) -> Graph:
        return capture(self.student, self.job.folder, opset=opset)

    def reference(self, feeds: Sequence[Feed]) -> Outputs:
        return reference_outputs(self.student, feeds)

    def cases(self, feed: Feed) -> Mapping[Case, Feed]:
        longest = self.student.max_length_tokens or 512
        sizes = dict.fromkeys((batch, min(tokens, longest)) for batch, tokens in _TIMED)
        return {
            Case(name=f"{batch}×{tokens}", sizes={"batch": batch, "tokens": tokens}): {
                name: np.ascontiguousarray(np.resize(value[0], (batch, tokens))) for name, value in feed.items()
            }
            for batch, tokens in sizes
        }

    def measure(self, reference: Outputs, outputs: Outputs) -> Fidelity:
        return measure(self.student.task, reference, outputs)

    def settings(self) -> EncoderSettings:
        return EncoderSettings(text=self.text, labels=self.student.labels)

    def files(self) -> Mapping[str, Content]:
        return {self.text.tokenizer: self.tokenizer}


def begin(job: Job) -> OnePassExport:
    return OnePassExport(job, TextInputs(job))
