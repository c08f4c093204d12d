"""The routes of a model, which its kind provides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Route:
    path: str  # under /v1
    answer: Callable[..., Awaitable[Any]]  # FastAPI passes the request and its body by type
    method: str = "POST"


class Endpoints(Protocol):
    """One model's routes. The model runs only in the server's lane."""

    @property
    def routes(self) -> tuple[Route, ...]: ...

    def cancel(self) -> None:
        """Cancel the running call, if possible."""

    def close(self) -> None:
        """Free resources kept between requests; nothing runs any more."""
