"""Captures image encoders as one graph: pixel_values float32 [B, channels, height, width] in, the task's output out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgecompress.capture.export import capture_module
from edgecompress.kinds.vision.tasks import HIDDEN_STATES, TASKS
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student


class ImageEncoder(torch.nn.Module):
    """Returns only the task's output."""

    def __init__(self, model: torch.nn.Module, student: Student) -> None:
        super().__init__()
        self.model = model
        self.task = student.task

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values=pixel_values)
        return (output.last_hidden_state if self.task == HIDDEN_STATES else output.logits,)


def example_inputs(model: torch.nn.Module, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, config.num_channels, height, width)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def capture(student: Student, out_dir: Path, *, opset: int) -> Graph:
    """Write ``captured.onnx`` (float32, dynamic batch) and return it.

    Raises StudentError if the architecture cannot be captured without changing its results.
    """

    def wrapped(model: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        return ImageEncoder(model, student), example_inputs(model, batch=2)

    axes = {0: torch.export.Dim("batch")}
    return capture_module(student, wrapped, axes, TASKS[student.task].outputs, out_dir, opset=opset)
