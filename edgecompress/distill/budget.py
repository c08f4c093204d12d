"""The budget of a labelling, checked before each request, with a reserve for every request in flight.

A request reserves its upper bound: one token per byte of its prompt, the overhead of the endpoint's chat template, and
all the new tokens that it may generate. A response counts as the endpoint reports it. A request without a response
counts at its upper bound, because it may have been billed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from edgecompress.distill.prompts import Message
from edgecompress.errors import UsageError

_FIRST_OVERHEAD = 64  # tokens that a chat template adds, until a response reports more
_PER_MESSAGE = 16
_MILLION = 1e6


@dataclass(frozen=True)
class Tokens:
    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits, and the price of a million tokens in any currency."""

    tokens: int | None = None
    money: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        priced = self.price_in is not None and self.price_out is not None
        if self.money is not None and not priced:
            raise UsageError("a budget in money needs token prices", hint="Give --price-in and --price-out.")
        if any(value is not None and value < 0 for value in (self.tokens, self.money, self.price_in, self.price_out)):
            raise UsageError("budgets and prices must be 0 or more", hint="Omit a limit to leave it open.")

    def cost(self, tokens: Tokens) -> float | None:
        """None if the prices are unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens.prompt * self.price_in + tokens.completion * self.price_out) / _MILLION

    def allow(self, tokens: Tokens) -> bool:
        if self.tokens is not None and tokens.total > self.tokens:
            return False
        cost = self.cost(tokens)
        return self.money is None or (cost is not None and cost <= self.money)


class Budget:
    """Tracks spending within one event loop."""

    def __init__(self, limits: Limits, spent: Tokens) -> None:
        """``spent``: by earlier runs with the same store and teacher."""
        self.limits, self.spent = limits, spent
        self._reserved = Tokens()
        self._overhead = _FIRST_OVERHEAD
        self._settled = asyncio.Event()

    def bound(self, messages: Sequence[Message], max_tokens: int) -> Tokens:
        """The upper bound of a request: no known tokenizer makes more than one token of a byte."""
        return Tokens(_bytes(messages) + self._overhead + _PER_MESSAGE * len(messages), max_tokens)

    def learn(self, messages: Sequence[Message], prompt_tokens: int) -> None:
        self._overhead = max(self._overhead, prompt_tokens - _bytes(messages) - _PER_MESSAGE * len(messages))

    async def reserve(self, bound: Tokens) -> bool:
        """False if the budget does not allow it, even after every request in flight is counted."""
        while not self.limits.allow(self.spent + self._reserved + bound):
            if not self._reserved.total:
                return False
            self._settled.clear()
            await self._settled.wait()
        self._reserved += bound
        return True

    def settle(self, bound: Tokens, actual: Tokens) -> None:
        """``actual``: zero if the request cannot have cost anything; the bound if its cost is unknown."""
        self._reserved -= bound
        self.spent += actual
        self._settled.set()


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(text.encode()) for message in messages for text in message.values())
