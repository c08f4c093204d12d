"""A decoder's reference outputs: PyTorch in float32, with the weights kept in their stored dtype.

A student of 1.8 B parameters takes 3.6 GB in bfloat16 and 7.1 GB in float32. Each weight is widened, which is exact,
only while its layer computes, to save memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch.nn import functional

from edgecompress.types.student import Student

_TOGETHER = 4  # texts of one length that share each widened weight


def reference_logits(student: Student, sequences: Sequence[npt.NDArray[np.int64]]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield logits float32 [T, V] of each sequence int64 [T], computed lazily, a few at a time."""
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        student.path,
        config=copy.deepcopy(config),
        attn_implementation="eager",
        dtype="auto",
        trust_remote_code=student.trust_remote_code,
        use_safetensors=None if student.allow_pickle else True,
    ).eval()
    widen(model)
    with torch.no_grad():
        for start in range(0, len(sequences), _TOGETHER):
            group = sequences[start : start + _TOGETHER]
            if len({len(sequence) for sequence in group}) > 1:
                rows = [torch.from_numpy(sequence[None]) for sequence in group]
            else:
                rows = [torch.from_numpy(np.stack(group))]
            for ids in rows:
                yield from model(ids, use_cache=False).logits.to(torch.float32).numpy()


def widen(model: torch.nn.Module) -> None:
    """Make ``model`` compute in float32, in place; linear layers and embeddings keep their stored weights."""
    kept: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = _linear(module)  # type: ignore[method-assign, assignment]
        elif type(module) is torch.nn.Embedding:
            module.forward = _embedding(module)  # type: ignore[method-assign, assignment]
        else:
            continue
        kept |= {id(parameter) for parameter in module.parameters(recurse=False)}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(torch.float32)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(torch.float32))


def _linear(module: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        bias = module.bias.to(torch.float32) if module.bias is not None else None
        return functional.linear(x, module.weight.to(torch.float32), bias)

    return forward


def _embedding(module: torch.nn.Embedding) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, module.weight, module.padding_idx).to(torch.float32)

    return forward
