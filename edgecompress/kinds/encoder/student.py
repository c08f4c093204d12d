"""Recognizes and reads text encoder checkpoints: task, maximum length and pooling, all from the checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompress.capture.checkpoint import head_of, is_multimodal, is_pair, labels_of, read_json, read_student
from edgecompress.capture.tokenizer import limit_length, position_count, require_tokenizer
from edgecompress.errors import StudentError
from edgecompress.kinds.encoder.tasks import CLASSIFICATION, EMBEDDING, HEADLESS, HIDDEN_STATES, RANKING, TASKS
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Checkpoint, Pooling, Student
from edgecompress.types.task import Task

_POSITIONS = 512  # default when config.json does not say
_UNBOUNDED_TOKENS = 1_000_000  # transformers writes 1e30 for "no limit"

_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True, kw_only=True)
class _SentenceModules:
    pooling: Pooling
    max_length_tokens: int | None
    lower_case: bool


def matches(checkpoint: Checkpoint, task: str | None) -> Task | None:
    """Accept any text checkpoint, since all have hidden states; this kind is tried last.

    Raises StudentError for a task without a head in the checkpoint.
    """
    config = checkpoint.config
    if is_pair(config) or is_multimodal(config):
        return None
    is_sentence = (checkpoint.folder / "modules.json").exists()
    found = next((each.name for each in TASKS.values() if each.heads and each.fits(head_of(config))), None)
    if found == CLASSIFICATION and len(labels_of(config)) == 1:
        found = RANKING  # one score, no classes: a cross-encoder
    if task is None:
        return TASKS[EMBEDDING if is_sentence else found or HIDDEN_STATES]
    if task == EMBEDDING and not is_sentence:
        raise StudentError(
            "the checkpoint has no modules.json, so the pooling of its sentence embeddings is unknown",
            hint="Give --task feature-extraction, or the folder of the sentence-transformers model.",
        )
    same_head = {task, found} == {CLASSIFICATION, RANKING}
    if task not in HEADLESS and task != found and not same_head:
        raise StudentError(
            f"the checkpoint ({head_of(config) or checkpoint.architecture}) has no head for {task}",
            hint=f"Give --task {found or HIDDEN_STATES}.",
        )
    return TASKS[task]


def read(checkpoint: Checkpoint, task: Task, recipe: StudentRecipe) -> Student:
    """Read the checkpoint. Raises StudentError for damaged weights, a missing tokenizer or an unsupported pooling."""
    folder, config = checkpoint.folder, checkpoint.config
    student = read_student(checkpoint, task, recipe)
    require_tokenizer(folder, recipe.source)
    sentence = _sentence_modules(folder)
    prompts = read_json(folder / "config_sentence_transformers.json")
    return replace(
        student,
        max_length_tokens=_max_length(recipe, folder, config, sentence),
        pooling=sentence.pooling if sentence and task.name == EMBEDDING else None,
        lower_case=sentence.lower_case if sentence else False,
        prompts={k: v for k, v in (prompts.get("prompts") or {}).items() if isinstance(v, str)},
        default_prompt=prompts.get("default_prompt_name"),
        labels=labels_of(config),
    )


def _sentence_modules(folder: Path) -> _SentenceModules | None:
    """Read sentence-transformers' modules.json and the files it names; None if there is none."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    modules = json.loads(path.read_text(encoding="utf-8"))
    modes: tuple[str, ...] = ()
    dense: list[Path] = []
    normalize = False
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Transformer":
            if module.get("path"):
                raise StudentError(
                    f"the transformer is in the subfolder '{module['path']}', an old layout that is not supported",
                    hint="Load and save the model with a current sentence-transformers.",
                )
        elif kind == "Pooling":
            modes = _pooling_modes(read_json(folder / module["path"] / "config.json"))
        elif kind == "Dense" and modes:
            dense.append(folder / module["path"])
        elif kind == "Normalize":
            normalize = True
        else:
            raise StudentError(
                f"the sentence-transformers module '{kind}' is not supported",
                hint="Use a model with Transformer, Pooling, Dense and Normalize modules only.",
            )
    if not modes:
        raise StudentError("modules.json has no Pooling module", hint="Give --task feature-extraction.")
    settings = read_json(folder / "sentence_bert_config.json")
    return _SentenceModules(
        pooling=Pooling(modes=modes, normalize=normalize, dense=tuple(dense)),
        max_length_tokens=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case", False)),
    )


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given:
        modes = (given,) if isinstance(given, str) else tuple(given)
    else:
        modes = tuple(mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag))
    for mode in modes:
        if mode not in _POOLING_MODES:
            raise StudentError(f"pooling mode '{mode}' is not supported", hint=f"Known: {', '.join(_POOLING_MODES)}.")
    return modes


def _max_length(
    recipe: StudentRecipe, folder: Path, config: Mapping[str, Any], sentence: _SentenceModules | None
) -> int:
    limit = position_count(config, unless_said=_POSITIONS)
    if recipe.max_length_tokens is not None:
        return limit_length(recipe.max_length_tokens, limit)
    if sentence and sentence.max_length_tokens:
        return min(sentence.max_length_tokens, limit)
    said = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return min(int(said), limit) if isinstance(said, int | float) and said < _UNBOUNDED_TOKENS else limit
