"""Saves the student's tokenizer as tokenizer.json, the only format that the runtime reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.errors import StudentError
from edgecompress.types.bundle import TextSettings
from edgecompress.types.student import Student

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
_ROBERTA_LIKE = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "xlm-roberta-xl",
)  # positions start after padding


def require_tokenizer(folder: Path, source: str) -> None:
    """Raises StudentError if the checkpoint has no tokenizer. ``source``: the checkpoint as the user named it."""
    if not any((folder / name).exists() for name in _FILES):
        raise StudentError(
            f"{source} has no tokenizer (none of {', '.join(_FILES[:3])}, …)",
            hint="Copy the tokenizer files of its base model into the folder of config.json.",
        )


def position_count(config: Mapping[str, Any], *, unless_said: int | None) -> int:
    """The number of positions of the model. Raises StudentError if it is unknown."""
    architecture = config["model_type"]
    given = (config.get(name) for name in _POSITIONS)
    positions = next((n for n in given if isinstance(n, int) and n > 0), unless_said)
    if positions is None:
        raise StudentError(
            f"config.json of this '{architecture}' does not give its number of positions", hint="Give --max-length."
        )
    return positions - (config.get("pad_token_id") or 1) - 1 if architecture in _ROBERTA_LIKE else positions


def limit_length(tokens: int, positions: int) -> int:
    """Return ``tokens``. Raises StudentError if the model has fewer positions."""
    if tokens > positions:
        raise StudentError(
            f"the maximum length is {tokens} tokens, but the model has only {positions} positions",
            hint=f"Give --max-length {positions} or less.",
        )
    return tokens


def save_tokenizer(student: Student, out_dir: Path) -> Path:
    """Write ``tokenizer.json``; transformers converts slow tokenizers. Raises StudentError if it cannot."""
    out = out_dir / "tokenizer.json"
    source = student.path / "tokenizer.json"
    if source.exists():
        shutil.copyfile(source, out)
        return out
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)
        tokenizer.backend_tokenizer.save(str(out))
    except Exception as error:  # converters raise whatever their parser raises
        raise StudentError(
            f"the tokenizer of {student.source} cannot be read: {str(error).splitlines()[0][:160]}",
            hint="Add a tokenizer.json, or a vocab.txt or sentencepiece file that transformers can convert.",
        ) from error
    return out


def text_settings(student: Student, tokenizer_path: Path) -> TextSettings:
    """The settings with which the runtime tokenizes like the student."""
    vocabulary = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    config = _json(student.path / "tokenizer_config.json")
    model_config = _json(student.path / "config.json")
    added = {t["content"]: t["id"] for t in vocabulary.get("added_tokens", [])}
    pad = _token(config.get("pad_token")) or next((t for t in ("[PAD]", "<pad>") if t in added), "[PAD]")
    mask = _token(config.get("mask_token")) or next((t for t in ("[MASK]", "<mask>") if t in added), None)
    pad_id = added.get(pad, model_config.get("pad_token_id") or 0)
    return TextSettings(
        tokenizer="tokenizer.json",
        max_length_tokens=student.max_length_tokens or 512,
        lower_case=student.lower_case,
        pad_token=pad,
        pad_token_id=int(pad_id),
        mask_token=mask,
        prompts=dict(student.prompts),
        default_prompt=student.default_prompt,
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
