"""POST /v1/sums."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from edgecompress.endpoints.bodies import Body
from edgecompress.endpoints.lane import Lane
from edgecompress.endpoints.routes import Route

PURPOSE = "sums"
MODEL = "an adder"
PATHS = ("/v1/sums",)


class Numbers(Body):
    numbers: Annotated[list[float], Field(min_length=2, max_length=2)]


def endpoints(model: Any, name: str, lane: Lane) -> Sums:
    return Sums(model, lane)


class Sums:
    def __init__(self, model: Any, lane: Lane) -> None:
        self._model, self._lane = model, lane

    @property
    def routes(self) -> tuple[Route, ...]:
        return (Route(path="/v1/sums", answer=self.add),)

    async def add(self, body: Numbers) -> dict[str, float]:
        return {"sum": await self._lane.run(lambda: self._model.add(*body.numbers))}

    def cancel(self) -> None: ...

    def close(self) -> None: ...
