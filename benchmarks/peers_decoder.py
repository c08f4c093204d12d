"""The peers of the decoder benchmark, each as two verbs: prefill a prompt, decode greedily after a part of it.

Every side runs with the same number of threads in a process of its own (``decoder_process``), computes on the CPU, and
keeps one sequence. The timed calls are those of an application: onnxruntime-genai's Generator, llama.cpp's eval,
OpenVINO GenAI's LLMPipeline. The pythons of the peers import this module too: it needs NumPy alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.r1_shape import CONFIG

TOKENS_RESERVED = 2304  # the longest context that is measured, and what is decoded behind it


class Side(Protocol):
    """One competitor with one sequence."""

    name: str
    ours: bool
    model_bytes: int
    weight_bytes_per_token: int  # read by one token: all but the embedding table, of which it reads a row
    kv_bytes_per_token: int  # of the cache, read once by every later token

    settings: dict[str, str]  # versions and what else decides its speed

    def prefill(self, ids: list[int]) -> None:
        """Start again with this prompt; the next token is known when it returns."""

    def decode(self, length: int, count: int) -> float:
        """Seconds of ``count`` greedy tokens behind the first ``length`` of the prompt and two more."""


def timed_steps(rewind: Callable[[int], None], step: Callable[[int], object], length: int, count: int) -> float:
    """``decode`` of a side that steps: ``rewind`` forgets what is behind ``length`` and knows the next token again."""
    rewind(length)
    step(2)
    started = time.perf_counter()
    step(count)
    return time.perf_counter() - started


EMBEDDING_ELEMENTS = CONFIG["vocab_size"] * CONFIG["hidden_size"]
_HEAD_SIZE = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
KV_ELEMENTS = 2 * CONFIG["num_hidden_layers"] * CONFIG["num_key_value_heads"] * _HEAD_SIZE


def folder_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


class Genai:
    """onnxruntime-genai with the threads written into its session options: it takes one thread otherwise."""

    ours = False

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self.name, self.model_bytes = name, folder_bytes(folder, "model.onnx*")
        self.weight_bytes_per_token = self.model_bytes - 4 * EMBEDDING_ELEMENTS  # its table stays in float32
        self.kv_bytes_per_token = 4 * KV_ELEMENTS
        self.settings = {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")} | {"kv_cache": "float32"}
        path = folder / "genai_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        config["search"]["past_present_share_buffer"] = True
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
        self._og, self._model = og, og.Model(str(folder))
        self._generator: Any = None

    def decode(self, length: int, count: int) -> float:
        return timed_steps(self.rewind, self.step, length, count)

    def prefill(self, ids: list[int]) -> None:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=TOKENS_RESERVED, min_length=TOKENS_RESERVED, do_sample=False)
        self._generator = self._og.Generator(self._model, params)
        self._generator.append_tokens(np.array(ids, dtype=np.int32))

    def step(self, count: int) -> list[int]:
        found = []
        for _ in range(count):
            self._generator.generate_next_token()
            found.append(int(self._generator.get_next_tokens()[0]))
        return found

    def rewind(self, length: int) -> None:
        """genai keeps no logits: the last token of the prefix is given again, outside the timed steps."""
        last = int(self._generator.get_sequence(0)[length - 1])
        self._generator.rewind_to(length - 1)
        self._generator.append_tokens(np.array([last], dtype=np.int32))


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level eval."""

    ours = False

    def __init__(self, name: str, path: Path, threads: int) -> None:
        import gguf
        import llama_cpp

        self.name, self.model_bytes = name, path.stat().st_size
        table = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "token_embd.weight")
        self.weight_bytes_per_token = self.model_bytes - int(table.n_bytes)
        self.kv_bytes_per_token = 2 * KV_ELEMENTS
        info = llama_cpp.llama_print_system_info().decode()
        self.settings = {"llama-cpp-python": version("llama-cpp-python"), "kv_cache": "float16, its default"}
        self.settings["system"] = info.strip(" |")
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=TOKENS_RESERVED,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self._next = 0

    def decode(self, length: int, count: int) -> float:
        return timed_steps(self.rewind, self.step, length, count)

    def prefill(self, ids: list[int]) -> None:
        self._llama.reset()
        self._llama.eval(ids)
        self._next = self._best()

    def _best(self) -> int:
        return int(np.argmax(self._llama.scores[self._llama.n_tokens - 1 if self._llama._logits_all else 0]))

    def step(self, count: int) -> list[int]:
        found = []
        for _ in range(count):
            found.append(self._next)
            self._llama.eval([self._next])
            self._next = self._best()
        return found

    def rewind(self, length: int) -> None:
        last = int(self._llama.input_ids[length - 1])
        self._llama.n_tokens = length - 1
        self._llama.eval([last])
        self._next = self._best()


class OpenVino:
    """OpenVINO GenAI's LLMPipeline with its defaults for a CPU: paged attention, its own choice of precision.

    It gives no step to call: a prompt is given again, and its prefix is found in the pipeline's cache. Its own clock
    tells the seconds between one token and the next.
    """

    ours = False

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        import openvino
        import openvino_genai

        self.name, self.model_bytes = name, folder_bytes(folder, "openvino_model.*")
        # The table is in int8 with a float16 scale and an int8 zero point a row.
        self.weight_bytes_per_token = self.model_bytes - EMBEDDING_ELEMENTS - 3 * CONFIG["vocab_size"]
        self.kv_bytes_per_token = KV_ELEMENTS  # uint8; their scales are not counted
        self._ov, self._og = openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.max_num_batched_tokens = 2 * TOKENS_RESERVED  # a prompt in one pass
        scheduler.enable_prefix_caching = True
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", scheduler_config=scheduler, **options)
        core = openvino.Core()
        self.settings = {name: version(name) for name in ("openvino", "openvino-genai")} | {
            "inference_precision": core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name(),
            "kv_cache": core.get_property("CPU", "KV_CACHE_PRECISION").get_type_name(),
            "dynamic_quantization_group": str(core.get_property("CPU", "DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }
        self._ids: list[int] = []
        self._prompts = 0

    def _generate(self, ids: list[int], count: int) -> Any:
        config = self._og.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        config.apply_chat_template = False
        tensors = (np.array([ids], dtype=np.int64), np.ones((1, len(ids)), dtype=np.int64))
        return self._pipeline.generate(self._og.TokenizedInputs(*map(self._ov.Tensor, tensors)), config)

    def prefill(self, ids: list[int]) -> None:
        """With another first token every time, so that nothing of it is in the cache."""
        self._prompts += 1
        self._ids = [4000 + self._prompts, *ids[1:]]
        self._generate(self._ids, 1)

    def decode(self, length: int, count: int) -> float:
        found = self._generate(self._ids[:length], 1 + 2 + count)
        between_us = list(found.perf_metrics.raw_metrics.m_durations)
        if len(between_us) != 2 + count:
            raise RuntimeError(f"OpenVINO GenAI told {len(between_us)} times between {3 + count} tokens")
        return sum(between_us[2:]) / 1e6
