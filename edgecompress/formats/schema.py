"""Generates JSON Schema (2020-12) from the dataclasses, so that the two always agree."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from edgecompress.types.bundle import Manifest
from edgecompress.types.distill import Distillation, DistillRecipe
from edgecompress.types.estimate import Estimates
from edgecompress.types.failure import ErrorDocument
from edgecompress.types.fleet import FleetResult
from edgecompress.types.profile import Comparison, Profile
from edgecompress.types.provenance import Lineage
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Measurements, Report
from edgecompress.types.target import Target

PUBLISHED: dict[str, type] = {
    "manifest": Manifest,
    "recipe": Recipe,
    "target": Target,
    "report": Report,
    "lineage": Lineage,
    "measurements": Measurements,
    "profile": Profile,
    "comparison": Comparison,
    "estimates": Estimates,
    "distill-recipe": DistillRecipe,
    "distillation": Distillation,
    "fleet": FleetResult,
    "error": ErrorDocument,
}
"""File stem under ``edgecompress/formats/schemas`` -> the dataclass that it describes."""

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(cls: type) -> dict[str, Any]:
    """The schema of one document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": cls.__name__} | _object(cls)


def _object(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return {
        "type": "object",
        "properties": {f.name: _of(hints[f.name]) for f in fields},
        "required": required,
        "additionalProperties": False,
    }


def _of(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if a is type(None) else _of(a) for a in arguments]}
    if dataclasses.is_dataclass(hint):
        return _object(hint)  # type: ignore[arg-type]
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": _of(arguments[0])}
        return {"type": "array", "prefixItems": [_of(a) for a in arguments], "minItems": len(arguments)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    return {"type": _SCALARS[hint]}
