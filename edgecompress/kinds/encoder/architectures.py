"""The text encoder architectures that were tried, with the results. A test checks each line."""

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
