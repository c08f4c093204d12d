"""Whether the output that a page shows still has the wording that its command prints."""

from __future__ import annotations

import re
from collections.abc import Sequence

_RULE = re.compile(r"─[─ ]*")
_TREE = re.compile(r"^[│├└─ ]+")
# What differs between the real student of a page and the tiny one of a test.
_VALUE = re.compile(r"'[^']*'|\S*/\S*|\b[0-9a-f]{16,}\b|(?:(?<!\w)[+-])?\d(?:[\d.,_:×x%]*[\dx%])?")


def stale_lines(shown: Sequence[str], printed: str, *, exact: bool) -> list[str]:
    """The shown lines that no line of the command's output matches.

    An error and its hint (``exact``, or a line of ``edgecompress:``) and the head of a table must match up to values.
    A row of a table must have the first cell of a printed row; another line its first cell and its last clause.
    """
    real = [_blank(line) for line in printed.splitlines()]
    stale, in_table = [], False
    for index, line in enumerate(shown):
        if line.strip() == "…" or (line.strip() and _RULE.fullmatch(line)):
            continue
        head = index + 1 < len(shown) and _RULE.fullmatch(shown[index + 1]) is not None
        in_table = head or (in_table and "  " in line.strip())
        wanted = _blank(line)
        label, _, rest = wanted.partition(" \n")
        if exact or head or line.startswith("edgecompress:"):
            pattern = _loose(wanted) + "$"
        elif in_table or not rest:
            pattern = _loose(label)
        else:
            pattern = _loose(label) + " .*" + _loose(re.split("[,:] ", rest)[-1]) + "$"
        if wanted and not any(re.match(pattern, other, re.DOTALL) for other in real):
            stale.append(line)
    return stale


def _blank(line: str) -> str:
    """The line without its values; `` \\n`` is between two cells."""
    return re.sub(" {2,}", " \n", _VALUE.sub("#", _TREE.sub("", line)).strip())


def _loose(text: str) -> str:
    """A pattern of the text; an ellipsis in it is anything."""
    return ".*".join(re.escape(part) for part in text.split("…"))
