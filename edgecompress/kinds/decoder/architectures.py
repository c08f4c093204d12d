"""The decoder architectures that were tried, with the results. A test checks each line."""

from __future__ import annotations

from edgecompress.types.architecture import Architecture

_SUPPORTED = (
    "apertus", "arcee", "biogpt", "bitnet", "cohere", "cohere2", "ctrl", "cwm", "ernie4_5", "exaone4", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granite_swa", "helium",
    "hunyuan_v1_dense", "hyperclovax", "jais2", "llama", "ministral", "ministral3", "mistral", "modernbert-decoder",
    "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
    "stablelm", "starcoder2", "vaultgemma",
)  # fmt: skip

_MIXTURES = (
    "afmoe", "cohere2_moe", "ernie4_5_moe", "flex_olmo", "flint", "glm4_moe", "gpt_oss", "granitemoe",
    "granitemoeshared", "hunyuan_v1_moe", "mellum", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_moe", "solar_open",
)  # fmt: skip
_EXPERTS = "a mixture of experts, each layer's as one op"

_OTHER_STATE = "keeps more between tokens than keys and values"
_OTHER_MASK = "attention mask is something else than causal with a sliding window"
_POSITIONS = "takes positions from the length of its cache"
_NO_INTERFACE = "does not go through transformers' attention interface"
_OTHER_KEYS = "attends to other keys than those it caches"

_REFUSED = {
    "bloom": _POSITIONS,
    "codegen": "cannot capture architecture 'codegen'",
    "deepseek_v2": _OTHER_KEYS,
    "deepseek_v3": _OTHER_KEYS,
    "diffllama": _OTHER_KEYS,
    "falcon_h1": _OTHER_STATE,
    "gptj": _NO_INTERFACE,
    "jetmoe": "cannot capture architecture 'jetmoe'",
    "lfm2": _OTHER_STATE,
    "llama4_text": _OTHER_MASK,
    "mamba": "cannot capture architecture 'mamba'",
    "mimo_v2_flash": "GroupQueryAttention cannot take",
    "minicpm3": _OTHER_KEYS,
    "mpt": _POSITIONS,
    "qwen3_next": _OTHER_STATE,
    "recurrent_gemma": _NO_INTERFACE,
    "xglm": _POSITIONS,
}

ARCHITECTURES = (
    *(Architecture(name=name) for name in _SUPPORTED),
    *(Architecture(name=name, note=_EXPERTS) for name in _MIXTURES),
    *(Architecture(name=name, refused=why) for name, why in _REFUSED.items()),
)
