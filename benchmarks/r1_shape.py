"""DeepSeek-R1-Distill-Qwen-1.5B's exact shape with random weights, as a bfloat16 checkpoint: speed and size are real.

``python -m benchmarks.r1_shape FOLDER`` writes 3.6 GB: config, safetensors, and a small byte-level tokenizer whose ids
lie inside the vocabulary. The answers of such a model mean nothing, so its quality is not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
_TOKENS = 4096


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 4,096 tokens trained on Python's own documentation."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<pad>", "<bos>", "<eos>"]
    tokenizer.train_from_iterator(topics.values(), vocab_size=_TOKENS, special_tokens=special, show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def make_checkpoint(folder: Path, *, layers: int = 28) -> Path:
    """Write the checkpoint, one tensor in memory at a time but for a shard's. Weights are normal with std 0.02."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_tokenizer(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**config))
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        group = 1 + int(name.split(".")[2]) // 10 if "layers" in name else 0
        shard = f"model-{group}.safetensors"
        if name.endswith("norm.weight"):
            value = torch.ones(parameter.shape)
        else:
            value = torch.randn(parameter.shape, generator=generator) * 0.02
        shards.setdefault(shard, {})[name] = value.to(torch.bfloat16)
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    names = {name: shard for shard, tensors in shards.items() for name in tensors}
    size = sum(tensor.numel() * 2 for tensors in shards.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="fewer for a quick trial")
    options = parser.parse_args()
    print(make_checkpoint(options.folder, layers=options.layers), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
