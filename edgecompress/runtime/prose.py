"""Real text of any length from Python's own documentation, the same on every machine with this Python version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

FIRST_TEXT = "A distilled student fits in the memory of a small device."
"""The first text that a new process runs."""


@cache
def _words() -> tuple[str, ...]:
    from pydoc_data.topics import topics  # 1 MB: imported only when needed

    return tuple(word for topic in topics.values() for word in topic.split() if word.isascii())


def text_of(tokens: int, encode: Callable[[str], Sequence[int]], index: int = 0) -> str:
    """Return real text of ``tokens`` tokens or a few more; each ``index`` gives a different text."""
    words = _words()
    start = index * 97 % len(words)
    rolled = words[start:] + words[:start]
    low, high = 1, 1
    while len(encode(" ".join(rolled[:high]))) < tokens:
        if high >= len(rolled):
            rolled += rolled
        low, high = high, min(2 * high, len(rolled))
    while low < high:
        middle = (low + high) // 2
        if len(encode(" ".join(rolled[:middle]))) < tokens:
            low = middle + 1
        else:
            high = middle
    return " ".join(rolled[:low])
