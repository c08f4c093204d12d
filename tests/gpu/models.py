"""Tiny random models with our kernels against transformers' own eager attention, on the CPU in Triton's interpreter.

Run as ``TRITON_INTERPRET=1 python -m tests.gpu.models OUT.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from edgecompress_kernels.gpu.attention import KernelInputError
from edgecompress_kernels.gpu.attention_interface import NAME, register

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "eos_token_id": None,
    "bos_token_id": None,
}
DECODERS = {
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED)),
    "mistral, window of 5": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, sliding_window=5)
    ),
    "gemma2, soft cap and window": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, sliding_window=5, attn_logit_softcapping=0.5, query_pre_attn_scalar=16)
    ),
}
ENCODERS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "modernbert, window on both sides": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(
            **SIZES, local_attention=8, global_attn_every_n_layers=2, bos_token_id=None, eos_token_id=None,
            cls_token_id=None, sep_token_id=None,
        )
    ),
}  # fmt: skip


def masks(side: str) -> torch.Tensor:
    mask = torch.ones(2, 19, dtype=torch.long)
    if side == "left":
        mask[1, :4] = 0
    elif side == "right":
        mask[1, -4:] = 0
    return mask


def hidden(model: torch.nn.Module, implementation: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask)[0][mask.bool()]


def errors() -> dict[str, float]:
    """Largest difference over the largest value, of every model; of the first with every padding."""
    found = {}
    ids = torch.randint(1, 64, (2, 19))
    for name, make in (DECODERS | ENCODERS).items():
        model = make().eval()
        for side in ("none", "left", "right") if not found else ("left",):
            expected = hidden(model, "eager", ids, masks(side))
            out = hidden(model, NAME, ids, masks(side))
            found[f"{name}, padding {side}"] = float((out - expected).abs().max() / expected.abs().max())
    return found


def texts() -> dict[str, list[Any]]:
    """Tokens generated with the cache, eager and ours, without and with padding."""
    found = {}
    for name, side in (("qwen2", "left"), ("gemma2, soft cap and window", "none")):
        model = DECODERS[name]().eval()
        ids, mask = torch.randint(1, 64, (2, 7)), masks(side)[:, :7]
        both = []
        for implementation in ("eager", NAME):
            model.set_attn_implementation(implementation)
            done = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
            both.append(done[:, 7:].tolist())
        found[f"{name}, padding {side}"] = both
    return found


def refusals() -> dict[str, str]:
    """What is said of each thing that the kernels do not compute."""
    model = DECODERS["qwen2"]().eval()
    model.set_attn_implementation(NAME)
    ids = torch.randint(1, 64, (2, 9))
    calls = {
        "gradients": lambda: model(input_ids=ids),
        "4D mask": lambda: model(input_ids=ids, attention_mask=torch.ones(2, 1, 9, 9, dtype=torch.bool)),
        "packed texts": lambda: model(
            input_ids=ids[:1], position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), use_cache=False
        ),
        "attention weights": lambda: model(input_ids=ids, output_attentions=True),
    }
    found = {}
    for name, call in calls.items():
        try:
            if name == "gradients":
                call()
            else:
                with torch.inference_mode():
                    call()
            found[name] = "taken"
        except KernelInputError as error:
            found[name] = str(error)
    return found


def main() -> None:
    torch.manual_seed(0)
    register()
    report = {"errors": errors(), "texts": texts(), "refusals": refusals()}
    Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
