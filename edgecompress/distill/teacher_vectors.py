"""A sentence encoder's vectors, computed once per text if the loss needs nothing else from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from edgecompress.distill.examples import Example, collate
from edgecompress.distill.objective import Objective

VECTORS = "teacher.npy"
_BATCH = 64


def vectors_of(
    objective: Objective,
    teacher: torch.nn.Module,
    examples: Sequence[Example],
    wanted: Sequence[int],
    pad_token_id: int,
    show: Callable[[str], None],
) -> torch.Tensor:
    """float32 [N, D]; rows outside ``wanted`` stay zero. Batches are the same in every run, shortest texts first."""
    order = sorted(wanted, key=lambda index: (len(examples[index].ids), index))
    found: torch.Tensor | None = None
    device = next(teacher.parameters()).device
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = {k: v.to(device) for k, v in collate([(i, examples[i]) for i in rows], pad_token_id).items()}
        with torch.no_grad():
            vector = objective.ask(teacher, batch).vector
        assert vector is not None
        if found is None:
            found = torch.zeros(len(examples), vector.shape[1], device=device)
        found[rows] = vector
        show(f"teacher's vectors: {min(start + _BATCH, len(order))} of {len(order)} texts")
    assert found is not None
    return found


def save_vectors(folder: Path, vectors: torch.Tensor) -> None:
    part = folder / f".{VECTORS}.part"
    with part.open("wb") as file:
        np.save(file, vectors.cpu().numpy())
    part.replace(folder / VECTORS)


def load_vectors(folder: Path) -> torch.Tensor | None:
    path = folder / VECTORS
    return torch.from_numpy(np.load(path)) if path.exists() else None
