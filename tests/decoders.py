"""Tiny decoders with random weights: their configurations, and a runner that keeps its KV cache in one buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import transformers

from edgecompress.runtime.cache import CACHE_DTYPES
from tests.tiny import save_tokenizer

WINDOW = 8  # shorter than every text of the tests
CAPACITY = 64  # of the cache that a graph is run with
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
}

# model_type (or a variant's name) -> (model_type, what is changed in _SIZES)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "yarn-rope": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 24,
            }
        },
    ),
    "dynamic-rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", _ALTERNATING | {"use_sliding_window": True}),
    "partial-rotary": ("glm", {"head_dim": 32}),  # 16 of 32, interleaved, inside GroupQueryAttention
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gpt2": ("gpt2", _GPT2),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "gemma2": ("gemma2", _ALTERNATING | {"query_pre_attn_scalar": 20}),
    "gemma3_text": ("gemma3_text", _ALTERNATING | {"query_pre_attn_scalar": 20}),
    "cohere2": ("cohere2", _ALTERNATING),
    "olmo3": ("olmo3", _ALTERNATING),
    "exaone4": ("exaone4", _ALTERNATING),
    "gpt_oss": ("gpt_oss", _ALTERNATING | _EXPERTS),
    "gelu-experts": ("qwen3_moe", _EXPERTS | {"hidden_act": "gelu_pytorch_tanh"}),
    "mish-experts": ("qwen3_moe", _EXPERTS | {"hidden_act": "mish"}),  # no gate that the op can say
    "gpt_oss-limited": ("gpt_oss", _ALTERNATING | _EXPERTS | {"swiglu_limit": 0.5}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("qwen3_next", _EXPERTS | {"layer_types": ["linear_attention", "full_attention"]}),
    "deepseek_v3": (
        "deepseek_v3",
        _EXPERTS
        | {
            "head_dim": 8,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}


def tiny_decoder(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """Save a tiny random checkpoint of an architecture or a variant, with a tokenizer."""
    model_type, changes = VARIANTS.get(name, (name, _EXPERTS))
    sizes = changes if changes is _GPT2 else _SIZES | changes | changed
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        # The default of 0.02 makes every layer nearly the identity, and norms of one hide a forgotten weight.
        torch.nn.init.normal_(parameter, std=0.15 if parameter.dim() > 1 else 0.3)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


class SharedCacheRunner:
    """The lowered graph with past and present bound to one buffer, poisoned behind what was written."""

    def __init__(self, path: Path, rows: int, capacity: int, poison: float = np.nan) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.lengths = [0] * rows
        self.cache: dict[str, np.ndarray] = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values."):
                _, heads, _, size = value.shape
                self.cache[value.name] = np.full((rows, heads, capacity, size), poison, dtype=CACHE_DTYPES[value.type])

    def step(self, rows: slice, ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Run ids int64 [B, T] behind what the rows hold; logits float32 [B, N, V] at the ``wanted`` positions."""
        batch, tokens = ids.shape
        past = np.array(self.lengths[rows], dtype=np.int64)
        total = int(past.max()) + tokens
        mask = (np.arange(total)[None] < (past + tokens)[:, None]).astype(np.int64)
        positions = past[:, None] + np.arange(tokens)[None]
        binding = self.session.io_binding()
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_positions": wanted}
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, buffer in self.cache.items():
            part = buffer[rows]
            assert part.flags["C_CONTIGUOUS"]
            binding.bind_input(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
            present = name.replace("past_key_values", "present")
            binding.bind_output(present, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        for row in range(*rows.indices(len(self.lengths))):
            self.lengths[row] += tokens
        return binding.copy_outputs_to_cpu()[-1] if batch else np.empty(0)


def eager_logits(folder: Path, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """float32 [T, V] of each sequence, alone and without a cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return [model.eval()(torch.from_numpy(s[None]), use_cache=False).logits[0].numpy() for s in sequences]


def largest_difference(folder: Path, lowered: Path, *, steps: int = 18, poison: float = np.nan) -> float:
    """Prefill two rows of unequal length, one in chunks, then decode both together; against eager PyTorch."""
    rng = np.random.default_rng(0)
    prompts = (21, 9)
    sequences = [rng.integers(3, 120, size=length + steps) for length in prompts]
    expected = eager_logits(folder, sequences)
    runner = SharedCacheRunner(lowered, rows=2, capacity=CAPACITY, poison=poison)
    differences = []
    for row, chunks in enumerate([(8, 8, 5), (9,)]):
        start = 0
        for tokens in chunks:
            ids = sequences[row][None, start : start + tokens]
            got = runner.step(slice(row, row + 1), ids, np.arange(tokens))
            differences.append(np.abs(got[0] - expected[row][start : start + tokens]).max())
            start += tokens
    for step in range(steps):
        ids = np.stack([sequences[row][prompts[row] + step : prompts[row] + step + 1] for row in range(2)])
        got = runner.step(slice(0, 2), ids, np.array([0]))
        differences += [np.abs(got[row, 0] - expected[row][prompts[row] + step]).max() for row in range(2)]
    worst = float(np.max(differences))  # NaN, if any of them is
    return worst if np.isfinite(worst) else float("inf")
