"""The tasks of decoders."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.types.task import Task

GENERATION = Task(
    name="text-generation",
    auto_class="AutoModelForCausalLM",
    outputs=("logits",),
    metric="perplexity",
    heads=("ForCausalLM", "LMHeadModel"),
)

TASKS: Mapping[str, Task] = {GENERATION.name: GENERATION}
