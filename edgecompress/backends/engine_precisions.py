"""What an engine is built in, by its short name; light, since the command line's help reads it."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.errors import RecipeError
from edgecompress.types.precision import AUTO, FP8, FP16, INT4, INT4_WEIGHTS, INT8, INT8_STATIC, INT8_WEIGHTS


def precisions(quantizes_activations: bool) -> Mapping[str, str]:
    """Each name means one thing: int8 is that of the weights alone where activations have outliers."""
    int8 = INT8_STATIC if quantizes_activations else INT8_WEIGHTS
    return {FP16: FP16, INT8: int8, INT4: INT4_WEIGHTS, FP8: FP8}


def resolve(precision: str, quantizes_activations: bool | None) -> str:
    """Raises RecipeError for a precision that no engine has, or for one that is to be chosen by measurement."""
    known = [precisions(flag) for flag in (True, False) if quantizes_activations in (None, flag)]
    names = ", ".join(known[0])
    if precision == AUTO:
        raise RecipeError(
            "auto measures what it chooses from, and an engine cannot be timed where it is built",
            hint=f"Say which precision: {names}.",
        )
    concrete = known[0].get(precision, precision)
    if not any(concrete in each.values() for each in known):
        raise RecipeError(f"an engine is not built as {precision} by this version", hint=f"It can be {names}.")
    return concrete
