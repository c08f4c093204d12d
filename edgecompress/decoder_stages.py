"""The stages of a decoder's export, in the same order as an encoder's and with the same ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from edgecompress import __version__
from edgecompress.bundle_card import model_card
from edgecompress.capture.decoder_reference import reference_logits
from edgecompress.capture.export import capture
from edgecompress.capture.generation import CHAT_TEMPLATE, chat_template, generation_settings
from edgecompress.capture.lineage import read_lineage
from edgecompress.capture.tokenizer import save_tokenizer, text_settings
from edgecompress.compile.inventory import host_facts, op_counts, target_record, tensor_spec, versions, weight_layers
from edgecompress.compile.onnxruntime import PROVIDERS, compile_graph, runtime_settings
from edgecompress.errors import CalibrationError, EdgeCompressError, StudentError
from edgecompress.formats import codec
from edgecompress.formats.cpu import host_cores
from edgecompress.formats.recipe import recipe_toml
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.lower.onnxruntime import lower, lower_model
from edgecompress.quantize.kv_cache import affordable_texts, cache_scales, spread_positions
from edgecompress.quantize.stage import quantize
from edgecompress.quantize.text import load_texts
from edgecompress.stages import Made, model_files, pick
from edgecompress.types.bundle import Manifest
from edgecompress.types.graph import Graph
from edgecompress.types.report import Candidate, Fidelity, Latency, Measurements, QuantizedCache, Report
from edgecompress.verify import latency
from edgecompress.verify.decoder import measure_decoder
from edgecompress.verify.decoder_check import Feed, Ids, Logits, logits_of, reference_file, text_feed
from edgecompress.verify.fidelity import require

if TYPE_CHECKING:
    from edgecompress.pipeline import Clock, Plan

_TEXT_TOKENS = 128  # of a held-out text; perplexity is taken over them
_REFERENCE_WORK = 2e12  # parameters x tokens that PyTorch may spend on the reference: a minute on two quiet cores
_FEWEST_TEXTS = 8
_REFERENCE_BYTES = 300_000
_PARITY_TOLERANCE = 1e-3  # of the largest logit
_PARITY_BYTES = 2_000_000_000  # a float32 graph beyond is not run beside PyTorch: the compiled one is held against it


class DecoderRun:
    """One export in progress. ``all`` runs every stage; the rest is what they share."""

    def __init__(self, plan: Plan, folder: Path, clock: Clock) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.recipe, self.student, self.target = plan.recipe, plan.student, plan.target
        self.threads = runtime_settings(self.target, self.recipe.runtime.threads).threads or host_cores()
        self.tokenizer = save_tokenizer(self.student, folder)
        self.past: dict[str, tuple[int, int]] = {}
        self.text_source = ""
        self.cache_dtype = np.dtype(np.int8 if self.recipe.quantize.kv_cache == "int8" else np.float32)
        self.float_cache: dict[str, Fidelity] = {}  # candidate -> what it is with a float32 cache
        self.cache_calibration_tokens = 0

    def all(self) -> Made:
        calibration, held_out = self._texts()
        with self.clock.stage("capture"):
            captured = capture(self.student, self.folder, opset=self.target.opset)
            self.past = _past_shapes(captured)
            self._require_tokens_fit(captured)
        with self.clock.stage("verify", "reference"):
            reference = self._reference(held_out)
            if captured.bytes_on_disk <= _PARITY_BYTES:
                self._require_parity(captured, held_out, reference)
        compiled: dict[str, Graph] = {}
        fidelity: dict[str, Fidelity] = {}
        refused: dict[str, str] = {}
        for name in self.plan.candidates:
            try:
                graph = self._compile(captured, name, calibration)
                if self.cache_dtype == np.int8:
                    with self.clock.stage("verify", f"{name} with an fp32 cache"):
                        self.float_cache[name] = self._fidelity(graph, held_out, reference)
                    with self.clock.stage("calibrate", f"KV cache of {name}"):
                        graph = self._with_int8_cache(graph, calibration)
            except EdgeCompressError as error:
                if len(self.plan.candidates) == 1:
                    raise
                refused[name] = f"refused: {error.message}"
                continue
            compiled[name] = graph
            with self.clock.stage("verify", name):
                fidelity[name] = self._fidelity(compiled[name], held_out, reference)
        timings: dict[str, latency.Timing] = {}
        if len(compiled) > 1 and self.plan.measured_here:
            with self.clock.stage("measure", "candidates in turn"):
                sides = {name: latency.open_session(graph.path, self.threads) for name, graph in compiled.items()}
                timings = latency.compare(sides, list(self._shapes(held_out[0]).values()))
        precision, table = pick(self.plan, compiled, fidelity, refused, timings)
        require(fidelity[precision], self.recipe.quality, precision=precision)
        return self._made(captured, compiled[precision], fidelity[precision], table, held_out, reference)

    def _texts(self) -> tuple[list[Ids], list[Ids]]:
        """Token sequences int64 [T] for calibration and, from other topics, for the figures of quality."""
        calibration, quality = self.recipe.calibration, self.recipe.quality
        texts = load_texts(calibration, quality.samples)
        limit = self.student.max_length_tokens or _TEXT_TOKENS
        affordable = max(_FEWEST_TEXTS, int(_REFERENCE_WORK / (self.student.parameters * _TEXT_TOKENS)))
        held_out = self._cut(texts.held_out, min(_TEXT_TOKENS, limit), min(quality.samples, affordable))
        if not held_out:
            raise CalibrationError("the held-out text is shorter than two tokens", way_out="Give more text.")
        self.text_source = f"{texts.source} (sha256 {texts.sha256})"
        return self._cut(texts.calibration, min(calibration.max_length_tokens, limit), calibration.samples), held_out

    def _cut(self, texts: Sequence[str], tokens: int, count: int) -> list[Ids]:
        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        stream = tokenizer.encode("\n\n".join(texts)).ids
        pieces = [np.array(stream[i : i + tokens], dtype=np.int64) for i in range(0, len(stream), tokens)]
        return [piece for piece in pieces if len(piece) > 1][:count]

    def _require_tokens_fit(self, captured: Graph) -> None:
        largest = Tokenizer.from_file(str(self.tokenizer)).get_vocab_size(with_added_tokens=True) - 1
        size = generation_settings(self.student, captured, self.tokenizer).vocab_size
        if largest >= size:
            raise StudentError(
                f"the tokenizer has token {largest} and the embedding table has only {size} rows",
                way_out="The tokenizer is another model's; copy the right one beside config.json.",
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
        found = logits_of(latency.make_session(lower(captured, self.folder).path, self.threads))(held_out[0])
        difference = float(np.abs(found - reference[0]).max())
        if not difference <= _PARITY_TOLERANCE * max(1.0, float(np.abs(reference[0]).max())):
            raise StudentError(
                f"the captured graph of architecture '{self.student.architecture}' differs from PyTorch "
                f"by {difference:.2g}",
                way_out="The exporter does not get this architecture right; it is not supported by this version.",
            )

    def _compile(self, captured: Graph, precision: str, calibration: Sequence[Ids]) -> Graph:
        def batches() -> Iterator[Feed]:
            for ids in calibration:
                yield text_feed(ids, self.past)  # every position: the head is calibrated too

        with self.clock.stage("quantize", precision):
            quantized = quantize(
                captured, precision, self.recipe, None, self.folder, batches=batches, make_runnable=lower_model
            )
        with self.clock.stage("lower", precision):
            lowered = lower(quantized, self.folder)
        with self.clock.stage("compile", precision):
            return compile_graph(lowered, self.target, self.folder)

    def _with_int8_cache(self, graph: Graph, calibration: Sequence[Ids]) -> Graph:
        longest = max(map(len, calibration), default=1)
        texts = calibration[: affordable_texts(self.student.parameters, longest, len(calibration))]
        self.cache_calibration_tokens = sum(map(len, texts))
        one = np.zeros(1, dtype=np.int64)  # no logits are needed
        context = self.student.max_length_tokens or longest
        places = spread_positions([len(ids) for ids in texts], context)
        feeds = (text_feed(ids, self.past, one, first_position=place) for ids, place in zip(texts, places, strict=True))
        return lower_cache(graph, cache_scales(latency.make_session(graph.path, self.threads), feeds), self.folder)

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
        run = logits_of(latency.make_session(graph.path, self.threads))
        return measure_decoder((expected, run(ids), ids) for ids, expected in zip(held_out, reference, strict=True))

    def _shapes(self, ids: Ids) -> dict[tuple[int, int], Feed]:
        """(batch, new tokens) -> feed: prompts of 128 and 16 tokens, then one token behind 127; less if that is all."""
        longest = min(_TEXT_TOKENS, self.student.max_length_tokens or _TEXT_TOKENS)
        whole = np.resize(ids, longest)
        shapes = {}
        for tokens, behind in ((longest, 0), (min(16, longest), 0), (1, longest - 1)):
            wanted = np.array([tokens - 1], dtype=np.int64)
            shapes[1, tokens] = text_feed(
                whole[:tokens], self.past, wanted, behind=behind, cache_dtype=self.cache_dtype
            )
        return shapes

    def _made(
        self,
        captured: Graph,
        graph: Graph,
        fidelity: Fidelity,
        table: tuple[Candidate, ...],
        held_out: Sequence[Ids],
        reference: Sequence[Logits],
    ) -> Made:
        model = ir.load(graph.path)
        latencies: tuple[Latency, ...] = ()
        if self.plan.measured_here:
            with self.clock.stage("measure", graph.precision):
                run = latency.open_session(graph.path, self.threads)
                latencies = tuple(
                    latency.percentiles(run, feed, batch=batch, length_tokens=tokens, threads=self.threads)
                    for (batch, tokens), feed in self._shapes(held_out[0]).items()
                )
        notes = () if self.plan.measured_here else (f"not measured: this machine is not a {self.target.name}",)
        report = Report(
            fidelity=fidelity,
            kv_cache=self._cache_report(graph, fidelity),
            layers=weight_layers(model),
            ops=op_counts(model),
            held_out_text=self.text_source,
            notes=(*notes, f"texts of {len(held_out[0])} tokens"),
        )
        lineage = read_lineage(self.student, self.text_source)
        manifest = Manifest(
            tool_version=__version__,
            name=Path(self.student.source).name or self.student.source,
            task=self.student.task,
            architecture=self.student.architecture,
            precision=graph.precision,
            model="model.onnx",
            inputs=tuple(tensor_spec(value) for value in model.graph.inputs),
            outputs=tuple(tensor_spec(value) for value in model.graph.outputs),
            target=target_record(self.target, graph.precision, PROVIDERS),
            runtime=runtime_settings(self.target, self.recipe.runtime.threads),
            text=text_settings(self.student, self.tokenizer),
            generation=generation_settings(self.student, graph, self.tokenizer),
            versions=versions(),
        )
        files: dict[str, Path | str | bytes] = {
            **model_files(graph),
            "tokenizer.json": self.tokenizer,
            "recipe.toml": recipe_toml(self.recipe),
            "report.json": codec.dumps(report),
            "lineage.json": codec.dumps(lineage),
            "reference.npz": reference_file(held_out, reference, _REFERENCE_BYTES),
            "README.md": model_card(manifest, report, lineage),
        }
        template = chat_template(self.student)
        if template is not None:
            files[CHAT_TEMPLATE] = template
        measurements = Measurements(
            manifest_sha256="", host=host_facts(self.threads), latencies=latencies, candidates=table
        )
        return Made(manifest=manifest, report=report, measurements=measurements, files=files)


def _past_shapes(captured: Graph) -> dict[str, tuple[int, int]]:
    """Cache input -> (heads, head size)."""
    shapes: dict[str, tuple[int, int]] = {}
    for value in ir.load(captured.path).graph.inputs:
        if (value.name or "").startswith("past_key_values."):
            assert value.shape is not None
            shapes[value.name or ""] = (int(str(value.shape[1])), int(str(value.shape[3])))
    return shapes
