"""Exports of students with one graph that runs once per sample: encoders of texts and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgecompress.graph.sessions import open_session
from edgecompress.kinds.base import REFERENCE_BYTES, Open, Parts, SampleSource
from edgecompress.kinds.one_pass_feeds import in_batches
from edgecompress.kinds.one_pass_parity import parity_feeds, require_parity
from edgecompress.lower.microsoft import lower
from edgecompress.runtime.metrics import Outputs
from edgecompress.runtime.model import Model
from edgecompress.runtime.self_check import pack_samples
from edgecompress.types.arrays import Array, Feed
from edgecompress.types.artifact import Artifact, Content
from edgecompress.types.bundle import MODEL, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.report import Fidelity

_BATCH = 8  # samples per run when comparing with the reference


class Inputs(Protocol):
    """The parts that depend on the kind of input."""

    pad_token_id: int

    def samples(self) -> tuple[SampleSource, list[Feed], list[Feed]]:
        """Return the source, the calibration feeds and the held-out feeds, one sample each."""

    def capture(self, opset: int) -> Graph: ...

    def reference(self, feeds: Sequence[Feed]) -> Outputs:
        """Return PyTorch's outputs for each feed."""

    def cases(self, feed: Feed) -> Mapping[Case, Feed]:
        """Return timing inputs, made by repeating a real sample."""

    def measure(self, reference: Outputs, outputs: Outputs) -> Fidelity: ...

    def settings(self) -> Any:
        """Return the kind's settings for the manifest."""

    def files(self) -> Mapping[str, Content]: ...


class OnePassExport:
    """One export."""

    costly_samples = 16

    def __init__(self, job: Job, inputs: Inputs) -> None:
        self.job, self.inputs = job, inputs
        self.calibration: list[Feed] = []
        self.held_out: list[Feed] = []
        self.expected: Outputs = []

    def samples(self) -> SampleSource:
        source, self.calibration, self.held_out = self.inputs.samples()
        return source

    def capture(self, opset: int) -> Mapping[str, Graph]:
        return {MODEL: self.inputs.capture(opset)}

    def reference(self, captured: Mapping[str, Graph]) -> None:
        """Check the captured graph against PyTorch, then compute PyTorch's outputs for the held-out feeds."""
        checks = parity_feeds(self.held_out, self.inputs.pad_token_id)
        outputs = self.inputs.reference([*checks, *self.held_out])
        run = open_session(lower(captured[MODEL], self.job.folder).path, self.job.threads)
        require_parity(self.job.student, run, checks, outputs[: len(checks)])
        self.expected = outputs[len(checks) :]

    def feeds(self, name: str) -> GraphFeeds:
        return GraphFeeds(calibration=lambda: self.calibration)

    def cases(self, name: str, inputs: Sequence[TensorSpec]) -> Mapping[Case, Feed]:
        return self.inputs.cases(self.held_out[0])

    def candidate(self, artifacts: Mapping[str, Artifact], open_model: Open) -> Mapping[str, Artifact]:
        return artifacts

    def fidelity(self, models: Mapping[str, Model], samples: int | None = None) -> Fidelity:
        """Run padded batches, as the runtime does, and cut each sample to its real length."""
        feeds, expected, model = self.held_out[:samples], self.expected[:samples], models[MODEL]
        outputs: list[list[Array]] = [[] for _ in feeds]
        for positions, batch in in_batches(feeds, _BATCH, self.inputs.pad_token_id):
            found = model.run(batch)
            for row, position in enumerate(positions):
                shapes = [array.shape for array in expected[position]]
                outputs[position] = [
                    output[row : row + 1, : shape[1]] if len(shape) > 1 else output[row : row + 1]
                    for output, shape in zip(found, shapes, strict=True)
                ]
        return self.inputs.measure(expected, outputs)

    def parts(
        self, artifacts: Mapping[str, Artifact], inputs: Mapping[str, Sequence[TensorSpec]], fidelity: Fidelity
    ) -> Parts:
        names = frozenset(spec.name for spec in inputs[MODEL])
        return Parts(
            settings=self.inputs.settings(),
            reference=reference_file(self.held_out, self.expected, names),
            files=self.inputs.files(),
        )


def reference_file(held_out: Sequence[Feed], reference: Outputs, names: frozenset[str]) -> bytes:
    """Pack held-out inputs and PyTorch's outputs, as many as fit, for checks on the device."""
    return pack_samples(
        (
            {f"{index}/in/{name}": value for name, value in feed.items() if name in names}
            | {f"{index}/out/{position}": value for position, value in enumerate(outputs)}
            for index, (feed, outputs) in enumerate(zip(held_out, reference, strict=True))
        ),
        REFERENCE_BYTES,
    )
