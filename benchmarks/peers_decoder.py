"""The sides of the decoder benchmark, each as three verbs: prefill a prompt, step greedily, go back to a length.

Every side runs with the same number of threads, computes on the CPU, and keeps one sequence. What is timed is what an
application would call: our runtime's own cache and session, onnxruntime-genai's Generator, llama.cpp's eval.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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

    def prefill(self, ids: list[int]) -> None:
        """Start again with this prompt; the next token is known when it returns."""

    def step(self, count: int) -> list[int]:
        """``count`` greedy tokens."""

    def rewind(self, length: int) -> None:
        """Forget every token behind the first ``length``, and know the next one again at the next step."""


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
        path = folder / "genai_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        config["search"]["past_present_share_buffer"] = True
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
        self._og, self._model = og, og.Model(str(folder))
        self._generator: Any = None

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
        import llama_cpp

        self.name, self.model_bytes = name, path.stat().st_size
        self.weight_bytes_per_token = self.model_bytes - EMBEDDING_ELEMENTS * 18 // 32  # Q4_0: 18 bytes for 32
        self.kv_bytes_per_token = 2 * KV_ELEMENTS  # its default is float16
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=TOKENS_RESERVED,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self._next = 0

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


def make_genai(checkpoint: Path, out_dir: Path, block_size: int) -> Path:
    """onnxruntime-genai's own builder, int4 on the CPU. Block 32 is its default."""
    if not (out_dir / "genai_config.json").exists():
        cache = out_dir.with_name(out_dir.name + "-cache")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out_dir)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(cache)]
        command += ["--extra_options", "accuracy_level=4", f"block_size={block_size}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.rmtree(cache, ignore_errors=True)
    return out_dir


def make_gguf(checkpoint: Path, path: Path) -> Path:
    """The checkpoint as GGUF with Q4_0 matrices, the head in Q8_0 and the embedding in Q4_0, by the gguf package."""
    if path.exists():
        return path
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                data = file.get_tensor(name).to(torch.float32).numpy()
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if data.ndim == 1:
                    writer.add_tensor(target, data)
                    continue
                kind = gguf.GGMLQuantizationType.Q8_0 if name == "lm_head.weight" else gguf.GGMLQuantizationType.Q4_0
                writer.add_tensor(target, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
