"""What a model answers, as the server takes it from the model's kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Route:
    path: str  # under /v1
    answer: Callable[..., Awaitable[Any]]  # FastAPI finds the request and its body by their types
    method: str = "POST"


class Endpoints(Protocol):
    """One model's routes. What runs the model does so in the server's lane."""

    @property
    def routes(self) -> tuple[Route, ...]: ...

    def cancel(self) -> None:
        """End what runs now, if that can be ended before it is done."""

    def close(self) -> None:
        """Free what was kept between requests; nothing runs any more."""
