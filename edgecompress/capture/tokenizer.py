"""The student's tokenizer as one tokenizer.json, the only form the runtime reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgecompress.errors import StudentError
from edgecompress.types.bundle import TextSettings
from edgecompress.types.student import Student


def save_tokenizer(student: Student, out_dir: Path) -> Path:
    """Write ``tokenizer.json``; a slow tokenizer is converted by transformers. Raises StudentError if it cannot be."""
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
            hint="It needs a tokenizer.json, or a vocab.txt or sentencepiece file that transformers can convert.",
        ) from error
    return out


def text_settings(student: Student, tokenizer_path: Path) -> TextSettings:
    """What the runtime must know to tokenize as the student does."""
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
