"""How a bundle's README shows an encoder's use."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.kinds.encoder.tasks import ANSWERS, MASKS, RANKING

_INPUTS = {
    ANSWERS: '("a question", "a text that holds the answer")',
    RANKING: '("a query", "a passage")',
    MASKS: '"a sentence with its [MASK]"',
}


def example(task: str) -> Sequence[str]:
    given = _INPUTS.get(task, '"a sentence"')
    return ('with load("path/to/this/folder") as encoder:', f"    print(encoder.predict([{given}]))")
