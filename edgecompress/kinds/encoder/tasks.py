"""What encoders of texts are for."""

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
    # A cross-encoder: one score and no classes. Its head is that of a classification, so no head names it.
    Task(name=RANKING, auto_class="AutoModelForSequenceClassification", outputs=("logits",), metric=KL),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}

HEADLESS = frozenset({HIDDEN_STATES, EMBEDDING})
"""Any encoder can do these."""

PAIRS = frozenset({CLASSIFICATION, RANKING, ANSWERS})
"""These take two texts, told apart by token_type_ids; where a task takes one they are all zero and are left out."""
