"""Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): speculative decoding with drafts from the text itself.

If the last few tokens occurred before, the tokens that followed then are likely to follow now (summaries, edits,
quotations). The model checks a whole draft in one run and keeps its longest correct prefix, so the output is that of
greedy decoding, provided that the graph's kernels give the same logits for one token as for several. Our kernels do,
bit for bit (docs/adr/0011). ONNX Runtime's do in float32, to 1e-5. Its MatMulNBits with int8 activations
(accuracy_level 4) and an int8 KV cache do not: where two tokens are almost equally likely, rounding decides.

The best draft length depends on the machine: one more token is nearly free where a step is bound by memory, and costs a
full step where it is bound by compute. So the length is chosen from measured run times and the recent acceptance rate.
It changes the speed, not the text.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (4, 3, 2)
_FADING = 0.8  # weight of past drafts, applied at each new one
_FRESH = 0.3  # weight of a new time in the running mean


class PromptLookup:
    """Drafts up to ``most`` tokens, and no more than measurements show to pay off."""

    def __init__(self, most: int, ids: Iterable[int] = ()) -> None:
        self._most = most
        self._right, self._wrong = 2.0, 0.0  # recently drafted tokens
        self._seconds: dict[int, float] = {}  # tokens of a run -> its duration
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation starts
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        end = len(self._ids)
        for size in _SIZES:
            if size <= end:
                self._after[tuple(self._ids[end - size : end])] = end
        self._ids.append(token)

    def draft(self, room: int) -> list[int]:
        """Return likely next tokens, at most ``room``; empty if the last tokens did not occur before."""
        length = len(self._ids)
        count = min(room, self._most)
        if count < 1:
            return []
        count = self._worth(count)
        for size in _SIZES:
            start = self._after.get(tuple(self._ids[length - size :])) if size <= length else None
            if start is not None:
                # If the text repeats with a period shorter than the draft, the draft repeats it too.
                return [self._ids[start + i % (length - start)] for i in range(count)]
        return []

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """Record the result of the last draft, if any, and the duration of the run."""
        before = self._seconds.get(drafted + 1, seconds)
        self._seconds[drafted + 1] = before + _FRESH * (seconds - before)
        if drafted:
            self._right = _FADING * self._right + accepted
            self._wrong = _FADING * self._wrong + (accepted < drafted)

    def _worth(self, count: int) -> int:
        """The draft length up to ``count`` with the most tokens per second, at the recent acceptance rate."""
        share = self._right / (self._right + self._wrong)
        best, most, tokens = 0, 0.0, 0.0
        for drafted in range(count + 1):
            tokens += share**drafted
            rate = tokens / self._takes(drafted + 1)
            if rate >= most:
                best, most = drafted, rate
        return best

    def _takes(self, tokens: int) -> float:
        """Expected seconds of a run: measured or interpolated; beyond measured sizes the nearest, so they are tried."""
        known = self._seconds
        below = max((n for n in known if n <= tokens), default=0)
        above = min((n for n in known if n >= tokens), default=0)
        if not below or not above or below == above:
            return known[below or above] if known else 1.0
        return known[below] + (known[above] - known[below]) * (tokens - below) / (above - below)
