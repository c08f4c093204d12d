"""The tasks of text encoders."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.types.task import Task

EMBEDDING, HIDDEN_STATES = "sentence-similarity", "feature-extraction"
CLASSIFICATION, RANKING = "text-classification", "text-ranking"
TOKENS, MASKS, ANSWERS = "token-classification", "fill-mask", "question-answering"

COSINE, KL = "cosine", "kl"

_ALL = (
    Task(name=HIDDEN_STATES, auto_class="AutoModel", outputs=("last_hidden_state",), metric=COSINE),
    Task(name=EMBEDDING, auto_class="AutoModel", outputs=("sentence_embedding",), metric=COSINE),
    Task(
        name=CLASSIFICATION,
        auto_class="AutoModelForSequenceClassification",
        outputs=("logits",),
        metric=KL,
        heads=("ForSequenceClassification",),
    ),
    Task(
        name=TOKENS,
        auto_class="AutoModelForTokenClassification",
        outputs=("logits",),
        metric=KL,
        heads=("ForTokenClassification",),
    ),
    Task(
        name=MASKS,
        auto_class="AutoModelForMaskedLM",
        outputs=("logits",),
        metric=KL,
        heads=("ForMaskedLM", "ForPreTraining"),
    ),
    Task(
        name=ANSWERS,
        auto_class="AutoModelForQuestionAnswering",
        outputs=("start_logits", "end_logits"),
        metric=KL,
        heads=("ForQuestionAnswering",),
    ),
    # A cross-encoder: one score, no classes. It has a classification head, so the head does not identify the task.
    Task(name=RANKING, auto_class="AutoModelForSequenceClassification", outputs=("logits",), metric=KL),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}

HEADLESS = frozenset({HIDDEN_STATES, EMBEDDING})
"""Tasks that any encoder supports."""

PAIRS = frozenset({CLASSIFICATION, RANKING, ANSWERS})
"""Tasks on two texts, told apart by token_type_ids. Other tasks omit that input, since it would be all zeros."""
