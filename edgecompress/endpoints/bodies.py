"""Request bodies. Unknown fields are refused; some known fields accept only a neutral value."""

from __future__ import annotations

from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def only(*neutral: Any) -> AfterValidator:
    """Accepts a missing field, null or one of these values."""

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            known = " or ".join(map(repr, neutral)) or "null"
            raise PydanticCustomError("not_supported", "only {known} is supported", {"known": known})
        return value

    return AfterValidator(check)
