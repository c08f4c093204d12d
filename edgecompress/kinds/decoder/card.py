"""How a bundle's README shows a decoder's use."""

from __future__ import annotations

from collections.abc import Sequence


def example(task: str) -> Sequence[str]:
    return (
        'with load("path/to/this/folder") as generator:',
        '    for piece in generator.stream("a prompt", max_new_tokens=64):',
        '        print(piece, end="", flush=True)',
    )
