"""What a student is for, by Hugging Face's names. Each kind of student lists its own in its ``tasks.py``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str  # Hugging Face's: "sentence-similarity"
    auto_class: str  # of transformers, which loads the checkpoint: "AutoModel"
    outputs: tuple[str, ...]  # of the bundle's model, in order
    metric: str  # what fidelity is judged by: "cosine", "kl", "perplexity"
    heads: tuple[str, ...] = ()  # endings of config.architectures whose checkpoints do it: "ForMaskedLM"

    def fits(self, head: str) -> bool:
        """Whether a checkpoint whose config.json names ``head`` as its architecture was trained for it."""
        return head.endswith(self.heads)
