"""The stages of a decoder's export, in the same order as an encoder's and with the same ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from edgecompress.backends.gpu_stage import GpuStage
from edgecompress.backends.onnxruntime_cpu.compile import compile_graph, runtime_settings
from edgecompress.backends.onnxruntime_cpu.decoder_layers import use_layers
from edgecompress.backends.onnxruntime_cpu.kernels import use_kernels
from edgecompress.capture.export import capture
from edgecompress.capture.tokenizer import save_tokenizer, text_settings
from edgecompress.errors import CalibrationError, StudentError
from edgecompress.export.assembly import REFERENCE_BYTES, Made, Parts, assemble
from edgecompress.export.candidates import Taken, take
from edgecompress.formats.cpu import host_cores
from edgecompress.graph.linears import Linear
from edgecompress.graph.sessions import make_session, open_session
from edgecompress.kinds.decoder.check import Feed, Ids, Logits, logits_of, reference_file, text_feed
from edgecompress.kinds.decoder.genai import GRAPH, genai_files, require_tokenizer
from edgecompress.kinds.decoder.generation import CHAT_TEMPLATE, chat_template, generation_settings
from edgecompress.kinds.decoder.metric import measure_decoder
from edgecompress.kinds.decoder.reference import reference_logits
from edgecompress.lower import standard
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.lower.microsoft import lower, lower_model
from edgecompress.quantize import sensitivity
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.quantize.stage import Calibrated, Calibration, calibrate, every_layer, quantize
from edgecompress.quantize.texts import affordable_texts, load_texts
from edgecompress.runtime.metrics import require
from edgecompress.types.bundle import GenerationSettings, Manifest
from edgecompress.types.graph import Graph
from edgecompress.types.limits import WeightLimits
from edgecompress.types.precision import FP16, FP32, PRECISIONS
from edgecompress.types.recipe import TENSORRT, TENSORRT_RTX
from edgecompress.types.report import Fidelity, QuantizedCache

if TYPE_CHECKING:
    from edgecompress.export.pipeline import Clock, Plan

_TEXT_TOKENS = 128  # of a held-out text; perplexity is taken over them
_REFERENCE_WORK = 2e12  # parameters x tokens that PyTorch may spend on the reference: a minute on two quiet cores
_FEWEST_TEXTS = 8
_PARITY_TOLERANCE = 1e-3  # of the largest logit
_PARITY_BYTES = 2_000_000_000  # a float32 graph beyond is not run beside PyTorch: the compiled one is held against it


class DecoderRun:
    """One export in progress. ``all`` runs every stage; the rest is what they share."""

    def __init__(self, plan: Plan, folder: Path, clock: Clock) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.recipe, self.student, self.target = plan.recipe, plan.student, plan.target
        self.threads = runtime_settings(self.target, self.recipe.runtime.threads).threads or host_cores()
        self.tokenizer = save_tokenizer(self.student, folder)
        self.for_genai = self.recipe.format == "genai"
        if self.for_genai:
            require_tokenizer(self.tokenizer)
        # An engine's cache is as long as it is built.
        self.context_tokens = self.recipe.engine.context_tokens or self.student.max_length_tokens
        self.past: dict[str, tuple[int, int]] = {}
        self.text_source = ""
        self.text_sha256: str | None = None
        self.cache_dtype = np.dtype(np.int8 if self.recipe.quantize.kv_cache == "int8" else np.float32)
        self.float_cache: dict[str, Fidelity] = {}  # candidate -> what it is with a float32 cache
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
        self.calibrated: Calibrated | None = None
        self.cache_calibration_tokens = 0
        self.gptq_calibration_tokens = 0

    def all(self) -> Made:
        calibration, held_out = self._texts()
        with self.clock.stage("capture"):
            opset = standard.CAPTURED_OPSET if self.engine else self.target.opset
            captured = capture(self.student, self.folder, opset=opset)
            self.past = past_shapes(captured)
            generation = generation_settings(self.student, captured, self.tokenizer)
            self._require_tokens_fit(generation.vocab_size)
        with self.clock.stage("verify", "reference"):
            reference = self._reference(held_out)
            if captured.bytes_on_disk <= _PARITY_BYTES:
                self._require_parity(captured, held_out, reference)
        if self.engine is not None:
            texts = self._affordable(calibration)
            self.engine.look_for_wide_values(captured.path, (text_feed(ids, self.past) for ids in texts))
            if PRECISIONS[self.recipe.precision].calibrated:
                self.calibrated = self._calibrated(captured, texts)

        def compiled(name: str) -> Graph:
            return self._with_cache(self._compile(captured, name, calibration), calibration, held_out, reference)

        taken = take(
            self.plan,
            self.clock,
            self.threads,
            compiled=compiled,
            fidelity=lambda graph: self._fidelity(graph, held_out, reference),
            shapes=lambda: self._shapes(held_out[0]),
        )
        require(taken.fidelity, self.recipe.quality, precision=taken.graph.precision)
        if self.engine is None:
            taken = self._with_kernels(taken, held_out, reference)
            parts = self._parts(taken, generation, held_out, reference)
        elif self.plan.backend != TENSORRT_RTX:
            parts = self._parts(taken, generation, held_out, reference)
            build = self.engine.build_plan(taken.graph) if self.plan.backend == TENSORRT else None
            parts = replace(parts, build=build, notes=(*parts.notes, *self.engine.graph_notes()))
        else:
            precision = taken.graph.precision
            taken, built = self.engine.build(
                taken,
                lambda only: self._compile(captured, precision, calibration, only),
                lambda graph: self._fidelity(graph, held_out, reference),
            )
            parts = self._parts(taken, generation, held_out, reference)
            parts = replace(parts, engine=built, notes=(*parts.notes, *self.engine.notes(built)))
        return assemble(self.plan, self.clock, self.threads, taken, parts)

    def _with_kernels(self, taken: Taken, held_out: Sequence[Ids], reference: Sequence[Logits]) -> Taken:
        """Our kernels where they are faster, held against the reference again; onnxruntime-genai cannot load them."""
        wanted = "none" if self.for_genai and self.recipe.runtime.kernels == "auto" else self.recipe.runtime.kernels
        here = self.plan.measured_here
        with self.clock.stage("compile", "kernels"):
            found = use_kernels(taken.graph, self.target, wanted, self.threads, self.folder, measured_here=here)
            # A layer as one op saves what is between operators: it matters where they are short.
            shapes = {(b, t): feed for (b, t), feed in self._shapes(held_out[0]).items() if t <= 16} if here else None
            found = use_layers(found, self.target, wanted, self.threads, self.folder, shapes=shapes)
        if found.record is None:
            return replace(taken, kernels=found.uses)
        with self.clock.stage("verify", "with our kernels"):
            fidelity = self._fidelity(found.graph, held_out, reference)
        require(fidelity, self.recipe.quality, precision=taken.graph.precision)
        return replace(taken, graph=found.graph, fidelity=fidelity, kernels=found.uses, library=found.record)

    def _calibrated(self, captured: Graph, texts: Sequence[Ids]) -> Calibrated:
        """What the inputs of its layers look like; nothing is smoothed."""
        recipe = replace(self.recipe, quantize=replace(self.recipe.quantize, smooth_alpha=0.0))
        with self.clock.stage("calibrate"):
            feeds = [text_feed(ids, self.past) for ids in texts]
            limits = replace(self.limits, residuals=False)  # those of float8 stay floats
            return calibrate(captured, recipe, lambda: feeds, lower_model, self.folder, limits=limits)

    def _texts(self) -> tuple[list[Ids], list[Ids]]:
        """Token sequences int64 [T] for calibration and, from other topics, for the figures of quality."""
        calibration, quality = self.recipe.calibration, self.recipe.quality
        texts = load_texts(calibration, quality.samples)
        limit = self.context_tokens or _TEXT_TOKENS
        affordable = max(_FEWEST_TEXTS, int(_REFERENCE_WORK / (self.student.parameters * _TEXT_TOKENS)))
        held_out = self._cut(texts.held_out, min(_TEXT_TOKENS, limit), min(quality.samples, affordable))
        if not held_out:
            raise CalibrationError("the held-out text is shorter than two tokens", hint="Give more text.")
        self.text_source = f"{texts.source} (sha256 {texts.sha256})"
        self.text_sha256 = texts.sha256
        return self._cut(texts.calibration, min(calibration.max_length_tokens, limit), calibration.samples), held_out

    def _cut(self, texts: Sequence[str], tokens: int, count: int) -> list[Ids]:
        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        stream = tokenizer.encode("\n\n".join(texts)).ids
        pieces = [np.array(stream[i : i + tokens], dtype=np.int64) for i in range(0, len(stream), tokens)]
        return [piece for piece in pieces if len(piece) > 1][:count]

    def _require_tokens_fit(self, size: int) -> None:
        largest = Tokenizer.from_file(str(self.tokenizer)).get_vocab_size(with_added_tokens=True) - 1
        if largest >= size:
            raise StudentError(
                f"the tokenizer has token {largest} and the embedding table has only {size} rows",
                hint="The tokenizer is another model's; copy the right one beside config.json.",
            )

    def _reference(self, held_out: Sequence[Ids]) -> list[Logits]:
        """PyTorch's logits float32 [T, V] of each text, on the disk: those of a large vocabulary do not fit beside."""
        kept: list[Logits] = []
        for index, logits in enumerate(reference_logits(self.student, held_out)):
            path = self.folder / f"reference-{index}.npy"
            np.save(path, logits)
            kept.append(np.load(path, mmap_mode="r"))
        return kept

    def _require_parity(self, captured: Graph, held_out: Sequence[Ids], reference: Sequence[Logits]) -> None:
        """Is the captured graph the student? The exporter can write one that loads and is wrong."""
        found = logits_of(make_session(lower(captured, self.folder).path, self.threads))(held_out[0])
        difference = float(np.abs(found - reference[0]).max())
        if not difference <= _PARITY_TOLERANCE * max(1.0, float(np.abs(reference[0]).max())):
            raise StudentError(
                f"the captured graph of architecture '{self.student.architecture}' differs from PyTorch "
                f"by {difference:.2g}",
                hint="The exporter does not get this architecture right; it is not supported by this version.",
            )

    def _compile(
        self,
        captured: Graph,
        precision: str,
        calibration: Sequence[Ids],
        only: Callable[[Linear], bool] = every_layer,
    ) -> Graph:
        def batches() -> Iterator[Feed]:
            for ids in self._affordable(calibration):
                yield text_feed(ids, self.past)  # every position: the head is calibrated too

        def probes() -> Iterator[Feed]:
            for ids in calibration[:: max(len(calibration) // sensitivity.TEXTS, 1)][: sensitivity.TEXTS]:
                yield text_feed(ids[: sensitivity.TOKENS], self.past)

        if self.recipe.quantize.method == "gptq" and precision not in (FP32, FP16):
            self.gptq_calibration_tokens = sum(map(len, self._affordable(calibration)))
        with self.clock.stage("quantize", precision):
            quantized = quantize(
                captured,
                precision,
                self.recipe,
                self.folder,
                calibration=Calibration(
                    statistics=self.calibrated, batches=batches, probes=probes, make_runnable=lower_model
                ),
                limits=self.limits,
                only=only,
            )
        with self.clock.stage("lower", precision):
            if self.engine is not None:
                return self.engine.lower(quantized, self.folder)
            lowered = lower(quantized, self.folder)
        with self.clock.stage("compile", precision):
            return compile_graph(lowered, self.target, self.folder)

    def _with_cache(
        self, graph: Graph, calibration: Sequence[Ids], held_out: Sequence[Ids], reference: Sequence[Logits]
    ) -> Graph:
        """The graph with the cache that was asked for; what it is with a float32 one is kept for the report."""
        if self.cache_dtype != np.int8:
            return graph
        with self.clock.stage("verify", f"{graph.precision} with an fp32 cache"):
            self.float_cache[graph.precision] = self._fidelity(graph, held_out, reference)
        with self.clock.stage("calibrate", f"KV cache of {graph.precision}"):
            return self._with_int8_cache(graph, calibration)

    def _with_int8_cache(self, graph: Graph, calibration: Sequence[Ids]) -> Graph:
        texts = self._affordable(calibration)
        self.cache_calibration_tokens = sum(map(len, texts))
        one = np.zeros(1, dtype=np.int64)  # no logits are needed
        context = self.context_tokens or max(map(len, texts), default=1)
        places = spread_positions([len(ids) for ids in texts], context)
        feeds = (text_feed(ids, self.past, one, first_position=place) for ids, place in zip(texts, places, strict=True))
        return lower_cache(graph, cache_scales(make_session(graph.path, self.threads), feeds), self.folder)

    def _affordable(self, calibration: Sequence[Ids]) -> Sequence[Ids]:
        """As many of the texts as a student of this size is run over."""
        longest = max(map(len, calibration), default=1)
        return calibration[: affordable_texts(self.student.parameters, longest, len(calibration))]

    def _cache_report(self, graph: Graph, fidelity: Fidelity) -> QuantizedCache | None:
        beside = self.float_cache.get(graph.precision)
        if beside is None:
            return None
        numbers = sum(heads * size for heads, size in self.past.values())  # a token
        assert fidelity.perplexity_ratio is not None
        assert beside.perplexity_ratio is not None
        return QuantizedCache(
            dtype=self.cache_dtype.name,
            calibration_tokens=self.cache_calibration_tokens,
            bytes_per_token=numbers * self.cache_dtype.itemsize,
            float_bytes_per_token=numbers * 4,
            float_fidelity=beside,
            perplexity_ratio=round(fidelity.perplexity_ratio / beside.perplexity_ratio, 6),
        )

    def _fidelity(self, graph: Graph, held_out: Sequence[Ids], reference: Sequence[Logits]) -> Fidelity:
        if self.engine is not None:
            graph = self.engine.rounded(graph)
        run = logits_of(make_session(graph.path, self.threads, graph.runnable_library))
        return measure_decoder((expected, run(ids), ids) for ids, expected in zip(held_out, reference, strict=True))

    def _shapes(self, ids: Ids) -> dict[tuple[int, int], Feed]:
        """(batch, new tokens) -> feed: prompts of 128 and 16 tokens, then one token behind 127; less if that is all."""
        longest = min(_TEXT_TOKENS, self.context_tokens or _TEXT_TOKENS)
        whole = np.resize(ids, longest)
        shapes = {}
        for tokens, behind in ((longest, 0), (min(16, longest), 0), (1, longest - 1)):
            wanted = np.array([tokens - 1], dtype=np.int64)
            shapes[1, tokens] = text_feed(
                whole[:tokens], self.past, wanted, behind=behind, cache_dtype=self.cache_dtype
            )
        return shapes

    def _parts(
        self, taken: Taken, generation: GenerationSettings, held_out: Sequence[Ids], reference: Sequence[Logits]
    ) -> Parts:
        template = chat_template(self.student)
        return Parts(
            text_source=self.text_source,
            text_sha256=self.text_sha256,
            reference=reference_file(held_out, reference, REFERENCE_BYTES),
            shapes=self._shapes(held_out[0]),
            text=text_settings(self.student, self.tokenizer),
            generation=self._settings(generation),
            kv_cache=self._cache_report(taken.graph, taken.fidelity),
            notes=(f"texts of {len(held_out[0])} tokens", *self._method_note()),
            more_files=(lambda model, manifest: self._genai_files(model, manifest, held_out[0]))
            if self.for_genai
            else None,
            files={"tokenizer.json": self.tokenizer} | ({CHAT_TEMPLATE: template} if template is not None else {}),
        )

    def _settings(self, generation: GenerationSettings) -> GenerationSettings:
        """With the cache that the graph has: a GPU's is float16, and an engine's as long as it was built."""
        engine = self.recipe.engine
        if engine.context_tokens is None or engine.length_tokens is None:
            return replace(generation, kv_dtype=self.cache_dtype.name if self.engine is None else "float16")
        return replace(
            generation,
            kv_dtype="float16",
            context_length_tokens=engine.context_tokens,
            prefill_chunk_tokens=min(generation.prefill_chunk_tokens, engine.length_tokens[2]),
        )

    def _method_note(self) -> tuple[str, ...]:
        tokens = self.gptq_calibration_tokens
        return (f"GPTQ calibrated on {tokens} tokens of training text",) if tokens else ()

    def _genai_files(self, model: Path | str | bytes, manifest: Manifest, ids: Ids) -> dict[str, Path | str]:
        """genai's own files, once its graph has given the logits that the bundle's gives."""
        assert isinstance(model, Path)
        assert manifest.generation is not None
        made = genai_files(model, manifest.generation, manifest.runtime, self.tokenizer)
        feed = text_feed(ids, self.past, np.array([len(ids) - 1], dtype=np.int64))
        ours, theirs = (open_session(model.with_name(name), self.threads)(feed) for name in (model.name, GRAPH))
        if ours[0].shape != theirs[0].shape or not np.allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4):
            raise StudentError(
                "the graph for onnxruntime-genai gives other logits than the bundle's",
                hint="Export it as a bundle, without --format genai.",
            )
        return made


def past_shapes(captured: Graph) -> dict[str, tuple[int, int]]:
    """Cache input -> (heads, head size)."""
    shapes: dict[str, tuple[int, int]] = {}
    for value in ir.load(captured.path).graph.inputs:
        if (value.name or "").startswith("past_key_values."):
            assert value.shape is not None
            shapes[value.name or ""] = (int(str(value.shape[1])), int(str(value.shape[3])))
    return shapes
