"""A manifest's settings of a text encoder."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.types.bundle import TextSettings


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    text: TextSettings
    labels: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Files in the bundle that the settings name."""
        return (self.text.tokenizer,)
