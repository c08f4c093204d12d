"""What a checkpoint is: its task, its length, its pooling. Read from its files, not guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.capture.checkpoint import hashes, inspect_weights, locate, read_json, weight_files
from edgecompress.errors import StudentError
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Pooling, Student

_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
_VISION = ("vit", "deit", "dinov2", "dinov2_with_registers", "beit", "swin", "dinov3_vit", "ijepa", "data2vec-vision")
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl")  # positions start behind padding
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
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


def load_student(recipe: StudentRecipe) -> Student:
    """Find and check the checkpoint. Raises StudentError, in one line, for whatever is wrong with it."""
    folder, revision = locate(recipe)
    if not (folder / "config.json").exists():
        raise StudentError(
            f"{recipe.source} is not a checkpoint: it has no config.json", hint="Give the folder that holds it."
        )
    config = read_json(folder / "config.json")
    architecture = config.get("model_type")
    if not isinstance(architecture, str):
        raise StudentError("config.json names no model_type", hint="Give a transformers checkpoint.")
    if config.get("auto_map") and not recipe.trust_remote_code:
        raise StudentError(
            f"the checkpoint brings its own Python code ({', '.join(sorted(config['auto_map']))})",
            hint="Read that code, then pass --trust-remote-code.",
        )
    _require_no_pair(config, architecture)
    files = weight_files(folder, recipe.allow_pickle)
    sentence = _sentence_modules(folder)
    task = _task(recipe.task, config, architecture, sentence is not None)
    is_vision = task.startswith("image-")
    if not is_vision and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise StudentError(
            f"{recipe.source} has no tokenizer (none of {', '.join(_TOKENIZER_FILES[:3])}, …)",
            hint="Copy the tokenizer files of its base model beside config.json.",
        )
    parameters, size = inspect_weights(files)
    prompts = read_json(folder / "config_sentence_transformers.json")
    return Student(
        source=recipe.source,
        path=folder,
        revision=revision,
        architecture=architecture,
        task=task,
        max_length_tokens=None if is_vision else _max_length(recipe, folder, config, architecture, task, sentence),
        pooling=sentence.pooling if sentence and task == "sentence-similarity" else None,
        lower_case=sentence.lower_case if sentence else False,
        prompts={k: v for k, v in (prompts.get("prompts") or {}).items() if isinstance(v, str)},
        default_prompt=prompts.get("default_prompt_name"),
        labels=_labels(config),
        parameters=parameters,
        weights_bytes=size,
        trust_remote_code=recipe.trust_remote_code,
        allow_pickle=recipe.allow_pickle,
        files=hashes(folder),
    )


def _require_no_pair(config: dict[str, Any], architecture: str) -> None:
    """Refuse what is neither an encoder nor a decoder with a language-model head."""
    if config.get("is_encoder_decoder"):
        raise StudentError(
            f"'{architecture}' is an encoder-decoder; this version exports encoders and decoders",
            hint="Give an encoder (BERT, MiniLM, ViT, …) or a causal language model (Qwen2, Llama, …).",
        )
    names = config.get("architectures") or [""]
    if str(names[0]).endswith("ForConditionalGeneration"):
        raise StudentError(
            f"'{architecture}' takes more than text; this version exports encoders and decoders of text",
            hint="Give the checkpoint of its language model alone (…ForCausalLM).",
        )
    if config.get("is_decoder") and not str(names[0]).endswith(_CAUSAL_HEADS):
        raise StudentError(
            f"'{architecture}' is a decoder without a language-model head",
            hint="Give the checkpoint with its head (…ForCausalLM).",
        )


def _task(given: str | None, config: dict[str, Any], architecture: str, is_sentence: bool) -> str:
    names = config.get("architectures") or [""]
    found = next((task for suffix, task in _HEADS.items() if names[0].endswith(suffix)), None)
    if found == "text-classification" and len(_labels(config)) == 1:
        found = "text-ranking"  # one score and no classes: a cross-encoder
    if given is None:
        if is_sentence:
            return "sentence-similarity"
        if architecture in _VISION:
            return found or "image-feature-extraction"
        return found or "feature-extraction"
    if given == "sentence-similarity" and not is_sentence:
        raise StudentError(
            "the checkpoint has no modules.json, so how its sentence embedding is pooled is unknown",
            hint="Give --task feature-extraction, or the folder of the sentence-transformers model.",
        )
    if given.startswith("image-") != (architecture in _VISION):
        raise StudentError(f"'{architecture}' cannot do {given}", hint="Leave --task out to take the checkpoint's own.")
    headless = ("feature-extraction", "image-feature-extraction", "sentence-similarity")
    same_head = {given, found} == {"text-classification", "text-ranking"}
    if given not in headless and given != found and not same_head:
        raise StudentError(
            f"the checkpoint ({names[0] or architecture}) has no head for {given}",
            hint=f"It can do {found or 'feature-extraction'}.",
        )
    return given


def _sentence_modules(folder: Path) -> _SentenceModules | None:
    """sentence-transformers' modules.json and the files it names; None if there is none."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    import json

    modules = json.loads(path.read_text(encoding="utf-8"))
    modes: tuple[str, ...] = ()
    dense: list[Path] = []
    normalize = False
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Transformer":
            if module.get("path"):
                raise StudentError(
                    f"the transformer lies in the sub-folder '{module['path']}'",
                    hint="Models of that old layout are not supported; save it again with sentence-transformers.",
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
                hint="Transformer, Pooling, Dense and Normalize are.",
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
    recipe: StudentRecipe,
    folder: Path,
    config: dict[str, Any],
    architecture: str,
    task: str,
    sentence: _SentenceModules | None,
) -> int:
    given = (config.get(name) for name in _POSITIONS)
    positions = next((n for n in given if isinstance(n, int) and n > 0), None)
    is_decoder = task == "text-generation"
    if is_decoder and positions is None and recipe.max_length_tokens is None:
        raise StudentError(
            f"config.json of this '{architecture}' does not say how many positions it has",
            hint="Give --max-length.",
        )
    limit = positions or (recipe.max_length_tokens if is_decoder and recipe.max_length_tokens else 512)
    if architecture in _ROBERTA_LIKE:
        limit -= (config.get("pad_token_id") or 1) + 1
    if recipe.max_length_tokens is not None:
        if recipe.max_length_tokens > limit:
            raise StudentError(
                f"the model has {limit} positions, fewer than the {recipe.max_length_tokens} tokens asked for",
                hint=f"Give --max-length {limit} or less.",
            )
        return recipe.max_length_tokens
    if sentence and sentence.max_length_tokens:
        return min(sentence.max_length_tokens, limit)
    if is_decoder:
        return limit  # tokenizers carry lengths of other models: R1-Distill's says 16,384 of its 131,072
    said = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return min(int(said), limit) if isinstance(said, int | float) and said < _UNBOUNDED_TOKENS else limit


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    labels = config.get("id2label") or {}
    return tuple(str(labels[key]) for key in sorted(labels, key=int))
