"""A manifest's settings of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.types.bundle import GenerationSettings, TextSettings


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    text: TextSettings
    generation: GenerationSettings

    @property
    def files(self) -> tuple[str, ...]:
        """Files in the bundle that the settings name."""
        template = self.generation.chat_template
        return (self.text.tokenizer, *([template] if template is not None else []))
