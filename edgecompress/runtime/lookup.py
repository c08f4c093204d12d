"""Prompt lookup: drafts from the text itself, for speculative decoding without a second model.

Where the last few tokens were seen before, what followed then is likely to follow now (summaries, edits, quotations).
The model checks a whole draft in one run and keeps its longest right prefix, so the output is that of greedy decoding:
exactly as far as the graph's kernels give the same logits for one token as for several. Ours do, bit for bit
(docs/adr/0011). ONNX Runtime's do in float32, to 1e-5; its MatMulNBits with int8 activations (accuracy_level 4) does
not, nor does an int8 KV cache, where a value on the border of two steps may fall to either side: where two tokens are
nearly as likely, rounding decides.
(Saxena, "Prompt Lookup Decoding", 2023.)

How many tokens are worth drafting depends on the machine: one more is nearly free where a step waits for the memory,
and costs as much as a step where it computes. So the length follows from what runs have taken, and from how drafts
fared lately. It changes how fast the text comes, and not the text.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (4, 3, 2)
_FADING = 0.8  # of what is known of drafts, with each new one
_FRESH = 0.3  # how much a new time counts among those before it


class PromptLookup:
    """Drafts of at most ``most`` tokens, and of as many as have paid."""

    def __init__(self, most: int, ids: Iterable[int] = ()) -> None:
        self._most = most
        self._right, self._wrong = 2.0, 0.0  # drafted tokens, lately
        self._seconds: dict[int, float] = {}  # tokens of a run -> what it takes
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation starts
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """The text is one token longer."""
        end = len(self._ids)
        for size in _SIZES:
            if size <= end:
                self._after[tuple(self._ids[end - size : end])] = end
        self._ids.append(token)

    def draft(self, room: int) -> list[int]:
        """What may come next, at most ``room`` tokens; empty if the text's end was never seen before."""
        length = len(self._ids)
        count = min(room, self._most)
        if count < 1:
            return []
        count = self._worth(count)
        for size in _SIZES:
            start = self._after.get(tuple(self._ids[length - size :])) if size <= length else None
            if start is not None:
                # Text that repeats with a period shorter than the draft is taken round again.
                return [self._ids[start + i % (length - start)] for i in range(count)]
        return []

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """How the last draft fared, if there was one, and what the run took."""
        before = self._seconds.get(drafted + 1, seconds)
        self._seconds[drafted + 1] = before + _FRESH * (seconds - before)
        if drafted:
            self._right = _FADING * self._right + accepted
            self._wrong = _FADING * self._wrong + (accepted < drafted)

    def _worth(self, count: int) -> int:
        """Of up to ``count``, how many give most tokens a second, if each is right as often as lately."""
        share = self._right / (self._right + self._wrong)
        best, most, tokens = 0, 0.0, 0.0
        for drafted in range(count + 1):
            tokens += share**drafted
            rate = tokens / self._takes(drafted + 1)
            if rate >= most:
                best, most = drafted, rate
        return best

    def _takes(self, tokens: int) -> float:
        """Seconds of a run: as it was, or between its neighbours; beyond those no more, so that it is tried."""
        known = self._seconds
        below = max((n for n in known if n <= tokens), default=0)
        above = min((n for n in known if n >= tokens), default=0)
        if not below or not above or below == above:
            return known[below or above] if known else 1.0
        return known[below] + (known[above] - known[below]) * (tokens - below) / (above - below)
