"""Loads text for calibration and, disjoint from it, for verification."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import CalibrationError, HostError
from edgecompress.types.recipe import CalibrationRecipe

_SHORTEST, _LONGEST = 40, 900  # characters of a built-in paragraph
_SNIFF_BYTES = 8192
_WORK = 1e13  # parameters x tokens that calibration may process: one to two minutes on two idle cores
_FEWEST_TEXTS = 16  # for a KV cache, 32 texts give the KL divergence of 128; 8 texts give twice as much


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """``held_out`` shares no text with ``calibration``; the built-in sets come from different topics."""

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str
    sha256: str  # of all texts, calibration first, one per line


def affordable_texts(parameters: int, tokens: int, samples: int) -> int:
    """The number of texts, at most ``samples``, of ``tokens`` each, to calibrate a student of that size on."""
    return min(samples, max(_FEWEST_TEXTS, int(_WORK / (parameters * tokens))))


def load_texts(recipe: CalibrationRecipe, held_out_samples: int) -> TextSet:
    """Load both sets. Raises CalibrationError if a source is missing, empty, binary or has too few texts."""
    if recipe.text == "builtin":
        calibration, held_out = _builtin()
        source = "built-in: the standard library's pydoc_data.topics"
    elif recipe.text.startswith("dataset:"):
        calibration, held_out = _split(_dataset(recipe.text, recipe.samples + held_out_samples), recipe.samples)
        source = recipe.text
    else:
        calibration, held_out = _split(_file(Path(recipe.text)), recipe.samples)
        source = Path(recipe.text).name
    if len(held_out) < held_out_samples and recipe.text != "builtin":
        held_out = _builtin()[1]
        source += "; held out: pydoc_data.topics"
    chosen, kept = _spread(calibration, recipe.samples), _spread(held_out, held_out_samples)
    for what, have, asked in (("calibration", chosen, recipe.samples), ("held-out", kept, held_out_samples)):
        if len(have) < asked:
            raise CalibrationError(
                f"{source} has {len(have)} {what} texts, but the recipe needs {asked}",
                hint="Give more text, or lower the number (--calibration-samples, quality.samples in the recipe).",
            )
    digest = hashlib.sha256("\n".join([*chosen, *kept]).encode()).hexdigest()
    return TextSet(calibration=chosen, held_out=kept, source=source, sha256=digest)


def _spread(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` texts, spread evenly over all of them."""
    if len(texts) <= count:
        return tuple(texts)
    return tuple(texts[i * len(texts) // count] for i in range(count))


def _split(texts: Sequence[str], calibration_samples: int) -> tuple[list[str], list[str]]:
    return list(texts[:calibration_samples]), list(texts[calibration_samples:])


def _builtin() -> tuple[list[str], list[str]]:
    from pydoc_data.topics import topics

    halves: tuple[list[str], list[str]] = ([], [])
    for index, name in enumerate(sorted(topics)):
        for block in topics[name].split("\n\n"):
            text = " ".join(block.split())
            if _SHORTEST <= len(text) <= _LONGEST and "+--" not in text and "::=" not in text and ">>>" not in text:
                halves[index % 2].append(text)
    seen = set(halves[0])
    return halves[0], [text for text in halves[1] if text not in seen]


def _file(path: Path) -> list[str]:
    if not path.is_file():
        raise CalibrationError(f"there is no calibration file {path}", hint="Give a text file with one text per line.")
    if b"\0" in path.read_bytes()[:_SNIFF_BYTES]:
        raise CalibrationError(f"{path} is binary", hint="Give a UTF-8 text file with one text per line.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text", hint="Convert it to UTF-8.") from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise CalibrationError(f"{path} is empty", hint="Give a text file with one text per line.")
    return texts


def _dataset(spec: str, count: int) -> list[str]:
    """``dataset:<id>[:column]``, the first split, streamed."""
    _, _, rest = spec.partition(":")
    name, _, column = rest.partition(":")
    try:
        import datasets
    except ImportError:
        raise HostError(
            "calibration on a dataset needs the package 'datasets', which is not installed",
            hint="Run `pip install datasets`, or give a text file.",
        ) from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        texts: list[str] = []
        for row in rows:
            text = row.get(column or "text")
            if not isinstance(text, str):
                known = ", ".join(k for k, v in row.items() if isinstance(v, str))
                raise CalibrationError(
                    f"dataset {name} has no text column '{column or 'text'}'",
                    hint=f"Give --calibration dataset:{name}:COLUMN, with one of its text columns: {known}.",
                )
            texts.append(" ".join(text.split()))
            if len(texts) >= count:
                break
    except CalibrationError:
        raise
    except Exception as error:  # the package raises whatever its readers raise
        raise CalibrationError(
            f"dataset {name} cannot be read: {str(error).splitlines()[0][:160]}", hint="Give a text file."
        ) from error
    return list(dict.fromkeys(text for text in texts if text))
