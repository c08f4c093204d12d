"""One export of a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecompress.capture.tokenizer import save_tokenizer, text_settings
from edgecompress.kinds.base import REFERENCE_BYTES, Open, Parts, SampleSource
from edgecompress.kinds.decoder.capture import capture
from edgecompress.kinds.decoder.check import Ids, Logits, cache_of, logits_of, reference_file, text_feed
from edgecompress.kinds.decoder.genai import genai_files, require_same_logits, require_tokenizer
from edgecompress.kinds.decoder.generation import CHAT_TEMPLATE, chat_template, generation_settings
from edgecompress.kinds.decoder.int8_cache import Int8Cache
from edgecompress.kinds.decoder.metric import measure
from edgecompress.kinds.decoder.parity import require_parity
from edgecompress.kinds.decoder.plan import GENAI
from edgecompress.kinds.decoder.reference import reference_logits
from edgecompress.kinds.decoder.samples import HELD_OUT_TOKENS, TextSamples, load_samples, require_tokens_fit
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.quantize import sensitivity
from edgecompress.runtime.model import Model
from edgecompress.types.arrays import Feed
from edgecompress.types.artifact import Artifact, Content
from edgecompress.types.bundle import MODEL, GenerationSettings, RuntimeSettings, TensorSpec
from edgecompress.types.case import Case
from edgecompress.types.feeds import GraphFeeds
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.precision import PRECISIONS
from edgecompress.types.recipe import KV_CACHES
from edgecompress.types.report import Fidelity


class DecoderExport:
    """One export."""

    costly_samples = 0  # a decoder has many layers, and a large one takes minutes per layer

    def __init__(self, job: Job) -> None:
        self.job, self.recipe, self.student = job, job.recipe, job.student
        self.tokenizer = save_tokenizer(job.student, job.folder)
        self.for_genai = job.recipe.format == GENAI.name
        if self.for_genai:
            require_tokenizer(self.tokenizer)
        # An engine's cache has a fixed capacity.
        self.context_tokens = job.recipe.engine.context_tokens or job.student.max_length_tokens
        self.int8_cache: Int8Cache | None = None

    def samples(self) -> SampleSource:
        self.texts: TextSamples = load_samples(
            self.recipe, self.tokenizer, self.student.parameters, self.context_tokens
        )
        return self.texts.source

    def capture(self, opset: int) -> Mapping[str, Graph]:
        captured = capture(self.student, self.job.folder, opset=opset)
        self.past = past_shapes(captured)
        self.generation = generation_settings(self.student, captured, self.tokenizer)
        require_tokens_fit(self.tokenizer, self.generation.vocab_size)
        if self.recipe.quantize.kv_cache != KV_CACHES[0]:
            texts = self.texts.calibration
            context = self.context_tokens or max(map(len, texts), default=1)
            self.int8_cache = Int8Cache(job=self.job, past=self.past, texts=texts, context_tokens=context)
        return {MODEL: captured}

    def reference(self, captured: Mapping[str, Graph]) -> None:
        """Write PyTorch's logits, float32 [T, V] per text, to disk: a large vocabulary's do not fit in memory."""
        self.expected: list[Logits] = []
        for index, logits in enumerate(reference_logits(self.student, self.texts.held_out)):
            path = self.job.folder / f"reference-{index}.npy"
            np.save(path, logits)
            self.expected.append(np.load(path, mmap_mode="r"))
        first = self.texts.held_out[0]
        require_parity(self.student, captured[MODEL], self.job.folder, self.job.threads, first, self.expected[0])

    def feeds(self, name: str) -> GraphFeeds:
        """Inputs that compute the logits of every position, so that the head is calibrated too."""

        def calibration() -> Iterator[Feed]:
            for ids in self.texts.calibration:
                yield text_feed(ids, self.past)

        def probes() -> Iterator[Feed]:
            every = self.texts.every
            for ids in every[:: max(len(every) // sensitivity.TEXTS, 1)][: sensitivity.TEXTS]:
                yield text_feed(ids[: sensitivity.TOKENS], self.past)

        return GraphFeeds(calibration=calibration, probes=probes, smooths=False)

    def cases(self, name: str, inputs: Sequence[TensorSpec]) -> Mapping[Case, Feed]:
        """Prompts of 128 and 16 tokens, then one token after 127; fewer if the text is shorter."""
        longest = min(HELD_OUT_TOKENS, self.context_tokens or HELD_OUT_TOKENS)
        whole = np.resize(self.texts.held_out[0], longest)
        cases = {}
        for tokens, behind in ((longest, 0), (min(16, longest), 0), (1, longest - 1)):
            case = Case(name=f"1×{tokens}", sizes={"batch": 1, "tokens": tokens})
            wanted = np.array([tokens - 1], dtype=np.int64)
            dtype = np.dtype(cache_of(inputs)[0].dtype)
            cases[case] = text_feed(whole[:tokens], self.past, wanted, behind=behind, cache_dtype=dtype)
        return cases

    def candidate(self, artifacts: Mapping[str, Artifact], open_model: Open) -> Mapping[str, Artifact]:
        """Put the requested KV cache into the graph; keep the fidelity with a float32 cache for the report."""
        if self.int8_cache is None:
            return artifacts
        artifact = artifacts[MODEL]
        precision = artifact.graph.precision
        with self.job.clock.stage("verify", f"{precision} with an fp32 cache"):
            self.int8_cache.beside[precision] = self.fidelity({MODEL: open_model(artifact)})
        with self.job.clock.stage("calibrate", f"KV cache of {precision}"):
            return {MODEL: replace(artifact, graph=self.int8_cache.put_in(artifact.graph))}

    def fidelity(self, models: Mapping[str, Model], samples: int | None = None) -> Fidelity:
        run = logits_of(models[MODEL])
        pairs = zip(self.texts.held_out[:samples], self.expected[:samples], strict=True)
        return measure((expected, run(ids), ids) for ids, expected in pairs)

    def parts(
        self, artifacts: Mapping[str, Artifact], inputs: Mapping[str, Sequence[TensorSpec]], fidelity: Fidelity
    ) -> Parts:
        artifact = artifacts[MODEL]
        template = chat_template(self.student)
        generation = self._generation(cache_of(inputs[MODEL])[0].dtype)
        cache = self.int8_cache
        files: dict[str, Content] = {"tokenizer.json": self.tokenizer}
        if template is not None:
            files[CHAT_TEMPLATE] = template

        def genai(models: Mapping[str, Path]) -> Mapping[str, Content]:
            return self._genai_files(models[MODEL], generation, artifact.runtime)

        return Parts(
            settings=DecoderSettings(text=text_settings(self.student, self.tokenizer), generation=generation),
            reference=reference_file(self.texts.held_out, self.expected, REFERENCE_BYTES),
            notes=(f"texts of {len(self.texts.held_out[0])} tokens", *self._method_note()),
            files=files,
            kv_cache=cache.report(artifact.graph.precision, fidelity) if cache is not None else None,
            sharing=genai if self.for_genai else None,
        )

    def _generation(self, cache_dtype: str) -> GenerationSettings:
        """Settings with the dtype of the model's cache and, for an engine, its capacity."""
        generation, engine = replace(self.generation, kv_dtype=cache_dtype), self.recipe.engine
        if engine.context_tokens is None or engine.length_tokens is None:
            return generation
        return replace(
            generation,
            context_length_tokens=engine.context_tokens,
            prefill_chunk_tokens=min(generation.prefill_chunk_tokens, engine.length_tokens[2]),
        )

    def _method_note(self) -> tuple[str, ...]:
        rounded = any(PRECISIONS[name].weights_alone for name in self.job.candidates)
        if self.recipe.quantize.method != "gptq" or not rounded:
            return ()
        return (f"GPTQ calibrated on {sum(map(len, self.texts.calibration))} tokens of training text",)

    def _genai_files(
        self, model: Path, generation: GenerationSettings, runtime: RuntimeSettings
    ) -> Mapping[str, Content]:
        """genai's files, after checking that its graph gives the same logits as the bundle's."""
        files = genai_files(model, generation, runtime, self.tokenizer)
        ids: Ids = self.texts.held_out[0]
        feed = text_feed(ids, self.past, np.array([len(ids) - 1], dtype=np.int64))
        require_same_logits(model, feed, self.job.threads)
        return files


def past_shapes(captured: Graph) -> dict[str, tuple[int, int]]:
    """Cache input -> (heads, head size)."""
    shapes: dict[str, tuple[int, int]] = {}
    for value in ir.load(captured.path).graph.inputs:
        if (value.name or "").startswith("past_key_values."):
            assert value.shape is not None
            shapes[value.name or ""] = (int(str(value.shape[1])), int(str(value.shape[3])))
    return shapes


def begin(job: Job) -> DecoderExport:
    return DecoderExport(job)
