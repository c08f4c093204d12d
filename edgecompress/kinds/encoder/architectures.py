"""Which encoders of texts were tried, and what came of it. Each line is shown to be true by a test."""

from __future__ import annotations

from edgecompress.types.architecture import Architecture

_SUPPORTED = (
    "albert", "bert", "camembert", "distilbert", "electra", "modernbert", "nomic_bert", "roberta", "xlm-roberta",
)  # fmt: skip

ARCHITECTURES = (
    *(Architecture(name=name) for name in _SUPPORTED),
    Architecture(name="deberta-v2", note="its attention stays as it is, outside the interface"),
    Architecture(
        name="mpnet",
        refused="the captured graph of architecture 'mpnet' does not run with other batch sizes and lengths",
    ),
)
