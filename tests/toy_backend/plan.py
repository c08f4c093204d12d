"""Checks a recipe; everything is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecompress.types.recipe import Recipe
from edgecompress.types.target import Target

PROVIDERS: tuple[str, ...] = ()
BUILDS_ENGINES = False
CALIBRATES = False


def precisions(quantizes_activations: bool) -> Mapping[str, str]:
    return {}


def resolve(precision: str, quantizes_activations: bool | None) -> str:
    return precision


def check_host(target: Target) -> None: ...


def check(recipe: Recipe) -> None: ...


def opset(target: Target) -> int:
    return target.opset


def stages(target: Target) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    return (("compile", "to a table"),), ()
