"""Checks that teacher and student have the same tokenizer: the losses compare them position by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecompress.errors import StudentError

_PROBES = ("Ünïcode, CamelCase & 3.14!", "  two  spaces\tand a tab", "日本語 на русском", "don't stop-word re-use")
_HINT = (
    "Use a student of the teacher's family, or of its layers (layers = … in [student]); or train on the teacher's "
    "responses only (method = 'black-box', with prompts and responses), which needs no common tokens."
)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load ``tokenizer.json`` itself, as a bundle's runtime does: an architecture's class may replace its normalizer.

    Raises StudentError if it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # converters raise whatever their parser raises
        raise StudentError(
            f"the tokenizer of {folder.name} cannot be read: {str(error).splitlines()[0][:160]}",
            hint="It needs a tokenizer.json, or a vocab.txt or sentencepiece file that transformers can convert.",
        ) from error


def require_same_tokens(teacher: Any, student: Any, texts: Sequence[str]) -> None:
    """Compare the vocabularies, and the tokens of some texts. Raises StudentError that names the first difference."""
    difference = _difference(teacher, student, [*_PROBES, *texts])
    if difference:
        raise StudentError(f"teacher and student have different tokenizers: {difference}", hint=_HINT)


def _difference(teacher: Any, student: Any, texts: Sequence[str]) -> str:
    far, near = teacher.get_vocab(), student.get_vocab()
    if far != near:
        first = min(
            (token for token in far.keys() | near.keys() if far.get(token) != near.get(token)),
            key=lambda token: min(far.get(token, len(far)), near.get(token, len(near))),
        )
        ids = ["missing" if v.get(first) is None else f"token {v[first]}" for v in (far, near)]
        sizes = f"{len(far)} and {len(near)} tokens; " if len(far) != len(near) else ""
        return f"{sizes}{first!r} is {ids[0]} in the teacher's and {ids[1]} in the student's"
    for text in texts:
        a, b = (tokenizer(text)["input_ids"] for tokenizer in (teacher, student))
        if a != b:
            place = next(
                (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
            )
            return f"their vocabularies are the same, but {text[:60]!r} is split differently from token {place} on"
    return ""
