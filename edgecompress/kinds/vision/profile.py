"""Times an image encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.kinds.vision.runtime import ImageEncoder
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.model import stage_timer
from edgecompress.runtime.shapes import parse_pair
from edgecompress.runtime.subject import Prepared, Side
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import CALL, GraphRun, Phase, Workload

COMPARED = "1x0"
_HINT = "Give images per call, times 0: --shapes 1x0,8x0."


def default_workloads(manifest: Manifest) -> str:
    return "1x0,8x0"


def parse(text: str, manifest: Manifest) -> Workload:
    """Parse ``8x0``: images in a call, times 0. Raises UsageError."""
    batch, tokens = parse_pair(text, _HINT, "images")
    if tokens:
        raise _no_tokens(manifest, text)
    return Workload(name=text, batch=batch)


def phases(manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
    return {CALL: Phase(runs=(GraphRun(sizes={"batch": workload.batch}),))}


def open_subject(source: OpenBundle) -> ImageSubject:
    return ImageSubject(source)


class ImageSubject:
    """An opened image encoder bundle."""

    def __init__(self, source: OpenBundle) -> None:
        self.manifest = source.manifest
        self._encoder = ImageEncoder(source)
        self.threads = self._encoder.threads

    def close(self) -> None:
        self._encoder.close()

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        """Raises UsageError for a trace."""
        if workload.requests:
            raise _no_tokens(self.manifest, workload.name)
        model, feed = self._encoder.model, self._feed(workload)
        stages: dict[str, list[float]] = {"compute": []}

        def call() -> object:
            began = time.perf_counter()
            outputs = model.run(feed)
            stages["compute"].append(time.perf_counter() - began)
            return outputs

        timed = stage_timer(model, call)
        return Prepared(
            call=call,
            stages=stages,
            items=workload.batch,
            phases={CALL: ("compute", 1)},
            parts={} if timed is None else {"compute": timed},
        )

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        raise UsageError("the offline scenario is for texts, not images", hint="Omit --scenario offline.")

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        model, feed = self._encoder.model, self._feed(workload)
        return {CALL: lambda: model.run(feed)}

    def _feed(self, workload: Workload) -> Feed:
        image = self._encoder.settings.image
        pixels = np.random.default_rng(0).standard_normal((workload.batch, 3, image.height, image.width))
        return {"pixel_values": pixels.astype(np.float32)}


def inputs(workload: Workload, manifests: Sequence[Manifest]) -> Feed:
    """Raises UsageError: image bundles cannot be compared."""
    raise UsageError(
        f"{manifests[0].name} takes images, but compare supports texts only", hint="Run: edgecompress profile BUNDLE"
    )


def side(source: OpenBundle) -> Side:
    model = source.open()
    return Side(lambda feed: model.run(feed)[0], model.close)


def _no_tokens(manifest: Manifest, name: str) -> UsageError:
    return UsageError(f"{manifest.name} takes images, which have no tokens, so {name} does not apply", hint=_HINT)
