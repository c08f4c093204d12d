"""Times an adder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.subject import Prepared, Side
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import CALL, GraphRun, Phase, Workload

COMPARED = "4"


def default_workloads(manifest: Manifest) -> str:
    return "1,4"


def parse(text: str, manifest: Manifest) -> Workload:
    if not text.isdigit():
        raise UsageError(f"'{text}' is not a number of pairs", hint="Give a number, such as --shapes 4.")
    return Workload(name=text, batch=int(text), sizes={"pairs": int(text)})


def phases(manifest: Manifest, workload: Workload) -> Mapping[str, Phase]:
    return {CALL: Phase(runs=(GraphRun(sizes={"batch": workload.batch}),))}


def _feed(workload: Workload) -> Feed:
    return {"numbers": np.random.default_rng(0).standard_normal((workload.batch, 2)).astype(np.float32)}


class Pairs:
    def __init__(self, source: OpenBundle) -> None:
        self.manifest, self.threads, self._model = source.manifest, source.threads, source.open()

    def prepare(self, workload: Workload, new_tokens: int) -> Prepared:
        stages: dict[str, list[float]] = {"add": []}
        arrays = _feed(workload)

        def call() -> object:
            began = time.perf_counter()
            outputs = self._model.run(arrays)
            stages["add"].append(time.perf_counter() - began)
            return outputs

        return Prepared(call=call, stages=stages, items=workload.batch, phases={CALL: ("add", 1)})

    def offline(self, workload: Workload, items: int) -> Callable[[], object]:
        return lambda: self._model.run(_feed(workload))

    def phases(self, workload: Workload) -> Mapping[str, Callable[[], object]]:
        return {CALL: lambda: self._model.run(_feed(workload))}

    def close(self) -> None:
        self._model.close()


def open_subject(source: OpenBundle) -> Pairs:
    return Pairs(source)


def inputs(workload: Workload, manifests: Sequence[Manifest]) -> Feed:
    return _feed(workload)


def side(source: OpenBundle) -> Side:
    model = source.open()
    return Side(lambda arrays: model.run(arrays)[0], model.close)
