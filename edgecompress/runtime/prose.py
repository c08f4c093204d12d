"""Real text of any length, the same on every machine with this Python: its own documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

FIRST_TEXT = "A distilled student fits in the memory of a small device."
"""What a fresh process is given first."""


@cache
def _words() -> tuple[str, ...]:
    from pydoc_data.topics import topics  # a megabyte, which a fresh process does not wait for

    return tuple(word for topic in topics.values() for word in topic.split() if word.isascii())


def text_of(tokens: int, encode: Callable[[str], Sequence[int]], index: int = 0) -> str:
    """Real text that becomes ``tokens`` tokens or a few more; ``index`` gives another one."""
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
