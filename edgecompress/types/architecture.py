"""A model architecture that was tested."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    name: str  # config.model_type
    refused: str | None = None  # part of the error message; None: supported
    note: str = ""
