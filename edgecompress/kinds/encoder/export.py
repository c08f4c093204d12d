"""The stages of one export, each called once, in the order of :mod:`edgecompress.export.pipeline`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.backends.gpu_stage import GpuStage
from edgecompress.backends.onnxruntime_cpu.compile import compile_graph, runtime_settings
from edgecompress.backends.onnxruntime_cpu.encoder_kernels import use_encoder_kernels
from edgecompress.backends.onnxruntime_cpu.kernels import Kerneled
from edgecompress.capture.export import capture
from edgecompress.capture.tokenizer import save_tokenizer, text_settings
from edgecompress.export.assembly import REFERENCE_BYTES, Made, Parts, assemble
from edgecompress.export.candidates import take
from edgecompress.formats.cpu import host_cores
from edgecompress.graph import timing as latency
from edgecompress.graph.linears import Linear
from edgecompress.graph.sessions import open_session
from edgecompress.kinds.encoder.parity import parity_feeds, require_parity
from edgecompress.kinds.encoder.reference import reference_outputs
from edgecompress.kinds.encoder.samples import Feed, image_feeds, in_batches, text_feeds
from edgecompress.kinds.vision.image import image_settings
from edgecompress.lower import standard
from edgecompress.lower.microsoft import lower, lower_model
from edgecompress.quantize.stage import Calibrated, Calibration, calibrate, every_layer, quantize
from edgecompress.quantize.texts import load_texts
from edgecompress.runtime.metrics import measure, require, shortfall
from edgecompress.types.graph import Graph
from edgecompress.types.limits import WeightLimits
from edgecompress.types.precision import PRECISIONS
from edgecompress.types.recipe import TENSORRT, TENSORRT_RTX
from edgecompress.types.report import Fidelity, LayerCost

if TYPE_CHECKING:
    from edgecompress.export.pipeline import Clock, Plan

_COSTLY_SAMPLES = 16
_VERIFY_BATCH = 8
_COSTLY_NAMED = 5


class Run:
    """One export in progress. ``all`` runs every stage; the rest is what they share."""

    def __init__(self, plan: Plan, folder: Path, clock: Clock) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.recipe, self.student, self.target = plan.recipe, plan.student, plan.target
        self.threads = runtime_settings(self.target, self.recipe.runtime.threads).threads or host_cores()
        self.tokenizer: Path | None = None
        self.calibrated: Calibrated | None = None
        self.text_source = ""
        self.text_sha256: str | None = None
        self.calibration: list[Feed] = []
        self.kernels: dict[str, Kerneled] = {}  # by precision
        self.held_out: list[Feed] = []
        self.engine = GpuStage(plan, folder, clock) if plan.for_gpu else None
        self.limits = (
            WeightLimits(
                signed_activations=True,
                positive_scales=True,
                half_scales=True,
                residuals=True,
                least_blocks=2,
                whole_columns=True,
                table_rows=True,
            )
            if self.engine is not None
            else WeightLimits(integer_bits=7 if self.target.u8s8_saturates else 8)
        )

    def all(self) -> Made:
        calibration, held_out = self._feeds()
        self.calibration, self.held_out = calibration, held_out
        with self.clock.stage("capture"):
            opset = standard.CAPTURED_OPSET if self.engine else self.target.opset
            captured = capture(self.student, self.folder, opset=opset)
        if any(PRECISIONS[name].calibrated for name in self.plan.candidates):
            with self.clock.stage("calibrate"):
                self.calibrated = calibrate(
                    captured,
                    self.recipe,
                    lambda: calibration,
                    lower_model,
                    self.folder,
                    limits=self.limits,
                )
        if self.engine is not None:
            source = captured.path if self.calibrated is None else self.calibrated.path
            self.engine.look_for_wide_values(source, self.calibration)
        with self.clock.stage("verify", "reference"):
            reference = self._reference(captured, held_out)
        taken = take(
            self.plan,
            self.clock,
            self.threads,
            compiled=lambda name: self._compile(captured, name),
            fidelity=lambda graph: self._fidelity(graph, held_out, reference),
            shapes=lambda: self._shapes(held_out[0]),
        )
        kernels = self.kernels.get(taken.graph.precision)
        if kernels is not None:
            taken = replace(taken, kernels=kernels.uses, library=kernels.record)
        precision, quality = taken.graph.precision, self.recipe.quality
        if shortfall(taken.fidelity, quality):
            with self.clock.stage("verify", "costly layers"):
                costly = self._costly_layers(captured, precision, held_out, reference)
            require(taken.fidelity, quality, precision=precision, costly=[cost.name for cost in costly])
        inputs = {value.name or "" for value in ir.load(taken.graph.path).graph.inputs}
        parts = self._parts(inputs, held_out, reference)
        if self.engine is not None and self.plan.backend != TENSORRT_RTX:
            build = self.engine.build_plan(taken.graph) if self.plan.backend == TENSORRT else None
            parts = replace(parts, build=build, notes=(*parts.notes, *self.engine.graph_notes()))
        elif self.engine is not None:
            taken, built = self.engine.build(
                taken,
                lambda only: self._compile(captured, precision, only, "kept"),
                lambda graph: self._fidelity(graph, held_out, reference),
            )
            parts = replace(parts, engine=built, notes=(*parts.notes, *self.engine.notes(built)))
        return assemble(self.plan, self.clock, self.threads, taken, parts)

    def _feeds(self) -> tuple[list[Feed], list[Feed]]:
        calibration, quality = self.recipe.calibration, self.recipe.quality
        if self.student.is_vision:
            self.text_source = "synthetic images: no photograph was at hand"
            return image_feeds(self.student, min(calibration.samples, 16), 0), image_feeds(
                self.student, min(quality.samples, 16), 1
            )
        texts = load_texts(calibration, quality.samples)
        self.text_source = f"{texts.source} (sha256 {texts.sha256})"
        self.text_sha256 = texts.sha256
        self.tokenizer = save_tokenizer(self.student, self.folder)
        return (
            text_feeds(self.tokenizer, self.student, texts.calibration, calibration.max_length_tokens),
            text_feeds(self.tokenizer, self.student, texts.held_out, calibration.max_length_tokens),
        )

    def _reference(self, captured: Graph, held_out: Sequence[Feed]) -> list[Any]:
        """PyTorch's outputs for the held-out feeds, once the captured graph has been found to be the student."""
        checks = parity_feeds(held_out, self._pad_token_id())
        outputs = reference_outputs(self.student, [*checks, *held_out])
        run = open_session(lower(captured, self.folder).path, self.threads)
        require_parity(self.student, run, checks, outputs[: len(checks)])
        return outputs[len(checks) :]

    def _compile(self, captured: Graph, precision: str, only: Any = None, tag: str = "") -> Graph:
        folder = self.folder / tag if tag else self.folder
        folder.mkdir(exist_ok=True)
        calibration = Calibration(
            statistics=self.calibrated, batches=lambda: self.calibration, make_runnable=lower_model
        )
        with self.clock.stage("quantize", precision):
            quantized = quantize(
                captured,
                precision,
                self.recipe,
                folder,
                calibration=calibration,
                limits=self.limits,
                only=only or every_layer,
            )
        with self.clock.stage("lower", precision):
            if self.engine is not None:
                return self.engine.lower(quantized, folder)
            lowered = lower(quantized, folder)
        with self.clock.stage("compile", precision):
            compiled = compile_graph(lowered, self.target, folder)
        return compiled if only is not None else self._with_kernels(compiled)

    def _with_kernels(self, graph: Graph) -> Graph:
        """The graph with our kernels where they are faster; fidelity and the choice then see it so."""
        with self.clock.stage("compile", f"{graph.precision} kernels"):
            found = use_encoder_kernels(
                graph, self.target, self.recipe.runtime.kernels, self.threads, self.folder,
                shapes=self._shapes(self.held_out[0]) if self.plan.measured_here else None,
            )  # fmt: skip
        self.kernels[graph.precision] = found
        return found.graph

    def _fidelity(self, graph: Graph, feeds: Sequence[Feed], reference: Sequence[Any]) -> Fidelity:
        """In padded batches, as the runtime will meet them; each sample is then cut to its real length."""
        if self.engine is not None:
            graph = self.engine.rounded(graph)
        run = open_session(graph.path, self.threads, graph.library)
        outputs: list[Any] = [None] * len(feeds)
        for positions, batch in in_batches(feeds, _VERIFY_BATCH, self._pad_token_id()):
            found = run(batch)
            for row, position in enumerate(positions):
                shapes = [expected.shape for expected in reference[position]]
                outputs[position] = [
                    output[row : row + 1, : shape[1]] if len(shape) > 1 else output[row : row + 1]
                    for output, shape in zip(found, shapes, strict=True)
                ]
        return measure(self.student.task, reference, outputs)

    def _pad_token_id(self) -> int:
        return text_settings(self.student, self.tokenizer).pad_token_id if self.tokenizer else 0

    def _costly_layers(
        self, captured: Graph, precision: str, feeds: Sequence[Feed], reference: Sequence[Any]
    ) -> tuple[LayerCost, ...]:
        """Quantize one layer at a time and see what that alone costs; the most costly first."""
        from edgecompress.graph.linears import find_linears

        source = self.calibrated.path if PRECISIONS[precision].calibrated and self.calibrated else captured.path
        feeds, reference = feeds[:_COSTLY_SAMPLES], reference[:_COSTLY_SAMPLES]
        costs = []
        for linear in find_linears(ir.load(source)):
            name = linear.name

            def is_it(other: Linear, name: str = name) -> bool:
                return other.name == name

            found = self._fidelity(self._compile(captured, precision, is_it, "one-layer"), feeds, reference)
            cost = 1 - found.mean_cosine if found.mean_cosine is not None else found.mean_kl or 0.0
            costs.append(LayerCost(name=name, cost=round(cost, 8)))
        return tuple(sorted(costs, key=lambda c: -c.cost)[:_COSTLY_NAMED])

    def _parts(self, model_inputs: set[str], held_out: Sequence[Feed], reference: Sequence[Any]) -> Parts:
        smoothed = self.calibrated.smoothed_layers if self.calibrated else None
        return Parts(
            text_source=self.text_source,
            text_sha256=self.text_sha256,
            reference=_reference_file(held_out, reference, model_inputs),
            shapes=self._shapes(held_out[0]),
            text=text_settings(self.student, self.tokenizer) if self.tokenizer else None,
            image=image_settings(self.student) if self.student.is_vision else None,
            labels=self.student.labels,
            notes=("smoothed: " + ", ".join(smoothed),) if smoothed is not None else (),
            files={"tokenizer.json": self.tokenizer} if self.tokenizer else {},
        )

    def _shapes(self, feed: Feed) -> Mapping[tuple[int, int], Mapping[str, npt.NDArray[Any]]]:
        return latency.shape_feeds(self.student.is_vision, feed, self.student.max_length_tokens)


def _reference_file(held_out: Sequence[Feed], reference: Sequence[Any], names: set[str]) -> bytes:
    """Held-out inputs and PyTorch's outputs for them, as many as fit, so that a device can check itself."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    size = 0
    for index, (feed, outputs) in enumerate(zip(held_out, reference, strict=True)):
        sample = {f"{index}/in/{name}": value for name, value in feed.items() if name in names}
        sample |= {f"{index}/out/{position}": value for position, value in enumerate(outputs)}
        size += sum(value.nbytes for value in sample.values())
        if index and size > REFERENCE_BYTES:
            break
        arrays |= sample
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
