"""Tasks, with Hugging Face's names. Each kind of student lists its tasks in its ``tasks.py``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str  # Hugging Face's: "sentence-similarity"
    auto_class: str  # the transformers class that loads the checkpoint: "AutoModel"
    outputs: tuple[str, ...]  # of the bundle's model, in order
    metric: str  # of fidelity: "cosine", "kl", "perplexity"
    heads: tuple[str, ...] = ()  # suffixes of config.architectures that have this task: "ForMaskedLM"

    def fits(self, head: str) -> bool:
        """Whether a checkpoint with ``head`` as its architecture in config.json was trained for this task."""
        return head.endswith(self.heads)
