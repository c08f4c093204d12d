"""Prompt lookup: drafts from the text itself, for speculative decoding without a second model.

Where the last few tokens were seen before, what followed then is likely to follow now (summaries, edits, quotations).
The model checks a whole draft in one run and keeps its longest right prefix, so the output is that of greedy decoding:
exactly as far as the graph's kernels give the same logits for one token as for several. Ours do, bit for bit
(docs/adr/0011). ONNX Runtime's do in float32, to 1e-5; its MatMulNBits with int8 activations (accuracy_level 4) does
not, nor does an int8 KV cache, where a value on the border of two steps may fall to either side: where two tokens are
nearly as likely, rounding decides.
(Saxena, "Prompt Lookup Decoding", 2023.)
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (4, 3, 2)


class PromptLookup:
    """Drafts of at most ``most`` tokens; it drafts less after a draft that failed, and more after one that held."""

    def __init__(self, most: int, ids: Iterable[int] = ()) -> None:
        self._most, self._now = most, most
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
        count = min(room, self._now)
        if count < 1:
            return []
        for size in _SIZES:
            start = self._after.get(tuple(self._ids[length - size :])) if size <= length else None
            if start is not None:
                # Text that repeats with a period shorter than the draft is taken round again.
                return [self._ids[start + i % (length - start)] for i in range(count)]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """How the last draft fared."""
        self._now = min(self._most, 2 * drafted) if accepted == drafted else max(1, accepted + 1)
