"""Turns tokens into text as they arrive: whole characters only, stop strings, reasoning split from the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from edgecompress.errors import UsageError
from edgecompress.runtime.results import Kind, Piece

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder emits for bytes that are not a whole character
_MOST_HELD_TOKENS = 8  # a character has at most four bytes; after that many tokens the bytes are invalid
_CONTEXT_TOKENS = 8


class PromptTokenizer:
    """A tokenizers.Tokenizer that is configured once and never changed, so threads can share it."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Return token ids; ``special_tokens`` adds the tokenizer's default special tokens.

        Raises UsageError if an id is outside the model's vocabulary: tokenizer and model do not match.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        self.check(ids)
        return ids

    def check(self, ids: Sequence[int]) -> None:
        """Raises UsageError if an id is outside the model's vocabulary."""
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self._vocab_size)
            raise UsageError(
                f"token {wrong} is outside the model's vocabulary of {self._vocab_size}",
                hint="Export the checkpoint with its own tokenizer; this one does not match the model.",
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token(self, token_id: int | None) -> str | None:
        found: str | None = None if token_id is None else self._tokenizer.id_to_token(token_id)
        return found

    def id_of(self, token: str | None) -> int | None:
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found


class Detokenizer:
    """Takes tokens one at a time; the returned strings, concatenated, are the text of all tokens.

    Tokens cannot be decoded one by one: a character can span several tokens, and a SentencePiece token loses its
    leading space when it comes first. So the tokens up to the last whole character are decoded again together with the
    new ones, and only the new text is returned.
    """

    def __init__(self, tokenizer: PromptTokenizer, prompt: Sequence[int] = (), spelled: Sequence[str] = ()) -> None:
        """``spelled``: tokens whose text is returned even if they are special, such as reasoning tags."""
        self._tokenizer = tokenizer
        ids = {tokenizer.id_of(text): text for text in spelled}
        self._spelled = {i: text for i, text in ids.items() if i in tokenizer.special_ids and i is not None}
        self._skipped = tokenizer.special_ids - self._spelled.keys()
        self._window: list[int] = []
        self._whole = 0  # the window's first tokens, up to the last whole character
        self._quiet = 0  # tokens since the last returned text
        self._shown = 0  # returned characters of the window's text
        self._start(self._context(prompt))

    def push(self, token: int) -> str:
        """Add a token and return the text that is now final, possibly empty."""
        if token in self._spelled:
            text = self.flush() + self._spelled[token]
            self._start([])
            return text
        if token in self._skipped:
            return ""
        self._window.append(token)
        self._quiet += 1
        text = self._tokenizer.decode(self._window)
        certain = text.rstrip(_BROKEN)
        if self._quiet > _MOST_HELD_TOKENS:
            certain = text
        new = certain[self._shown :]
        if not new:
            if self._whole and text == certain:
                self._window.pop()  # a token without text, such as an id above the tokenizer's vocabulary
            return ""
        self._shown, self._quiet = len(certain), 0
        if len(certain) == len(text):
            self._start(self._window[self._whole :])
        return new

    def flush(self) -> str:
        """At the end of the text, return what is held back, including incomplete characters."""
        text = self._tokenizer.decode(self._window)[self._shown :] if self._window else ""
        self._start([])
        return text

    def _start(self, window: list[int]) -> None:
        """Restart at a whole character; the text of ``window`` has been returned already."""
        self._window, self._whole, self._quiet = window, len(window), 0
        self._shown = len(self._tokenizer.decode(window)) if window else 0

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens, starting at a whole character, so that the first new token keeps its space."""
        tail: list[int] = []
        for token in reversed(prompt[-_CONTEXT_TOKENS:]):
            if token in self._tokenizer.special_ids:
                break
            tail.insert(0, token)
            text = self._tokenizer.decode(tail)
            if text and not text.startswith(_BROKEN):
                return tail
        return []


class StopStrings:
    """Ends the text before the first stop string; holds back text that could be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        if not self._stops:
            return text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            given, self._held, self.found = self._held[: min(places)], "", True
            return given
        return self._give(max(overlap(self._held, stop) for stop in self._stops))

    def flush(self) -> str:
        return self._give(0)

    def _give(self, kept: int) -> str:
        cut = len(self._held) - kept
        given, self._held = self._held[:cut], self._held[cut:]
        return given


class ReasoningSplit:
    """Splits reasoning from answer at the checkpoint's tags and removes the tags, which can arrive in parts.

    Reasoning can only come first: a tag inside the answer is part of the answer.
    """

    def __init__(self, start: str | None, end: str | None, *, inside: bool) -> None:
        self._start, self._end = (start, end) if start and end else ("", "")
        self._state = "reasoning" if inside and self._end else "beginning" if self._start else "answer"
        self._held = ""
        self._trim = self._state == "reasoning"  # white space next to a tag is removed with it

    def push(self, text: str) -> list[tuple[str, Kind]]:
        self._held += text
        given: list[tuple[str, Kind]] = []
        if self._state == "beginning":
            rest = self._held.lstrip()
            if rest.startswith(self._start):
                self._state, self._held, self._trim = "reasoning", rest[len(self._start) :], True
            elif self._start.startswith(rest):
                return []
            else:
                self._state = "answer"
        if self._state == "reasoning":
            before, tag, after = self._held.partition(self._end)
            if tag:
                self._give(before, "reasoning", given)
                self._state, self._held, self._trim = "answer", after, True
            else:
                cut = len(before) - overlap(before, self._end)
                self._held = before[cut:]
                self._give(before[:cut], "reasoning", given)
        if self._state == "answer":
            held, self._held = self._held, ""
            self._give(held, "answer", given)
        return given

    def flush(self) -> list[tuple[str, Kind]]:
        given: list[tuple[str, Kind]] = []
        held, self._held = self._held, ""
        self._give(held, "reasoning" if self._state == "reasoning" else "answer", given)
        return given

    def _give(self, text: str, kind: Kind, given: list[tuple[str, Kind]]) -> None:
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            given.append((text, kind))


class TextStream:
    """Chains the three for one text: tokens in, pieces out."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, split: ReasoningSplit) -> None:
        self._detokenizer, self._stops, self._split = detokenizer, stops, split
        self._ids: list[int] = []
        self._parts: list[str] = []
        self._by_kind: dict[Kind, list[str]] = {"answer": [], "reasoning": []}

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def of_kind(self, kind: Kind) -> str:
        return "".join(self._by_kind[kind])

    def push(self, token: int) -> list[Piece]:
        self._ids.append(token)
        text = self._stops.push(self._detokenizer.push(token))
        return self._pieces(self._split.push(text) if text else [], text)

    def finish(self) -> list[Piece]:
        """Return everything that is held back; call once, at the end."""
        text = "" if self.stopped else self._stops.push(self._detokenizer.flush())
        text += self._stops.flush()
        return self._pieces(self._split.push(text) + self._split.flush(), text)

    def _pieces(self, parts: list[tuple[str, Kind]], text: str) -> list[Piece]:
        self._parts.append(text)
        pieces = []
        for index, (part, kind) in enumerate(parts):
            self._by_kind[kind].append(part)
            ids: tuple[int, ...] = ()
            if index == len(parts) - 1:
                ids, self._ids = tuple(self._ids), []
            pieces.append(Piece(text=part, kind=kind, token_ids=ids))
        return pieces


def overlap(text: str, mark: str) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``mark``."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
