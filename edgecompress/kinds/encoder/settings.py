"""What a manifest says of an encoder of texts."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.types.bundle import TextSettings


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    text: TextSettings
    labels: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """That it names, inside the bundle."""
        return (self.text.tokenizer,)
