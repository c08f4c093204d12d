"""Captures text encoders as one graph: token ids in, the task's outputs out, sentence-transformers' pooling inside.

Inputs: input_ids, attention_mask int64 [B, T] and, where the task takes pairs, token_type_ids int64 [B, T].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from edgecompress.capture.export import capture_module
from edgecompress.errors import StudentError
from edgecompress.kinds.encoder.tasks import ANSWERS, EMBEDDING, HIDDEN_STATES, PAIRS, TASKS
from edgecompress.types.graph import Graph
from edgecompress.types.student import Pooling, Student

_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
}


class Encoder(torch.nn.Module):
    """Names a task's outputs, and includes sentence-transformers' pooling in the graph."""

    def __init__(self, model: torch.nn.Module, student: Student) -> None:
        super().__init__()
        self.model = model
        self.task = student.task
        self.pooling = student.pooling
        self.dense = torch.nn.ModuleList(_dense_modules(student.pooling))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """A fixed signature, which the exporter needs."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: value for name, value in given.items() if value is not None}
        output = self.model(**inputs)
        if self.task == ANSWERS:
            return output.start_logits, output.end_logits
        if self.task == HIDDEN_STATES:
            return (output.last_hidden_state,)
        if self.task == EMBEDDING:
            if self.pooling is None:
                raise StudentError(
                    "the checkpoint has no sentence-transformers modules.json, so its pooling is unknown",
                    hint="Give --task feature-extraction, or the folder that contains modules.json.",
                )
            return (self.pool(self.pooling, output.last_hidden_state, inputs["attention_mask"]),)
        return (output.logits,)

    def pool(self, pooling: Pooling, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, H], mask [B, T] -> [B, dimension], like sentence-transformers' Pooling."""
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        parts = []
        for mode in pooling.modes:
            if mode == "cls":
                parts.append(hidden[:, 0])
            elif mode == "max":
                parts.append(hidden.masked_fill(weights == 0, -1e9).amax(1))
            elif mode in ("mean", "mean_sqrt_len_tokens"):
                count = weights.sum(1).clamp(min=1e-9)
                # A product of [B, 1, T] and [B, T, H] sums without a masked copy of hidden.
                summed = torch.matmul(weights.transpose(1, 2), hidden).squeeze(1)
                parts.append(summed / (count if mode == "mean" else count.sqrt()))
            elif mode == "weightedmean":
                weighted = weights * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
                parts.append((hidden * weighted).sum(1) / weighted.sum(1).clamp(min=1e-9))
            else:
                raise StudentError(f"pooling mode '{mode}' is not supported", hint="Give --task feature-extraction.")
        vector = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        for module in self.dense:
            vector = module(vector)
        return functional.normalize(vector, dim=-1) if pooling.normalize else vector


def _dense_modules(pooling: Pooling | None) -> list[torch.nn.Module]:
    modules: list[torch.nn.Module] = []
    for folder in pooling.dense if pooling else ():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        activation = config.get("activation_function", "torch.nn.modules.linear.Identity")
        if activation not in _ACTIVATIONS:
            raise StudentError(f"the Dense module in {folder.name} uses {activation}, which is not supported")
        weights = load_file(folder / "model.safetensors")
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
        modules.append(torch.nn.Sequential(linear, _ACTIVATIONS[activation]()))
    return modules


def takes_token_types(student: Student, model: torch.nn.Module) -> bool:
    config: Any = model.config
    return student.task in PAIRS and (getattr(config, "type_vocab_size", 0) or 0) > 1


def example_inputs(
    student: Student, model: torch.nn.Module, batch: int, tokens: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random inputs by name, int64 [batch, tokens]; the second row ends with padding."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    low = min(5, config.vocab_size - 1)
    ids = torch.randint(low, config.vocab_size, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if batch > 1 and tokens > 3:
        mask[1, tokens - tokens // 3 :] = 0
        ids[1, tokens - tokens // 3 :] = getattr(config, "pad_token_id", 0) or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if takes_token_types(student, model):
        types = torch.zeros_like(ids)
        types[:, tokens // 2 :] = 1
        inputs["token_type_ids"] = types
    return inputs


def capture(student: Student, out_dir: Path, *, opset: int) -> Graph:
    """Write ``captured.onnx`` (float32, dynamic batch and sequence) and return it.

    Raises StudentError if the architecture cannot be captured without changing its results.
    """

    def wrapped(model: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        return Encoder(model, student), example_inputs(student, model, batch=2, tokens=11)

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    return capture_module(student, wrapped, axes, TASKS[student.task].outputs, out_dir, opset=opset)
