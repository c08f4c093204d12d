"""A checkpoint as it was found, and the student that a kind reads from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A local folder in Hugging Face's layout, before a kind claims it."""

    folder: Path
    config: Mapping[str, Any]  # from config.json, which has a model_type

    @property
    def architecture(self) -> str:
        return str(self.config["model_type"])


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What sentence-transformers does after the transformer, read from its module files."""

    modes: tuple[str, ...]  # "cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken": concatenated
    normalize: bool
    dense: tuple[Path, ...] = ()  # directories of Dense modules, applied in order between pooling and normalization


@dataclass(frozen=True, kw_only=True)
class Student:
    """A local, readable checkpoint."""

    source: str  # as the user gave it
    path: Path  # the directory that holds it
    architecture: str  # config.model_type
    task: str
    kind: str = ""  # a name of ``edgecompress.kinds``
    auto_class: str = ""  # the transformers class that loads it
    revision: str | None = None  # commit on the hub; None for a local directory
    max_length_tokens: int | None = None  # None: not a text model
    pooling: Pooling | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    labels: tuple[str, ...] = ()
    parameters: int = 0
    weights_bytes: int = 0
    trust_remote_code: bool = False
    allow_pickle: bool = False
    files: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256, for files that the export reads
