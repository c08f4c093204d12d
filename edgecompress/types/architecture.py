"""An architecture that was tried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    name: str  # config.model_type
    refused: str | None = None  # why, in the words of the refusal; None: supported
    note: str = ""
