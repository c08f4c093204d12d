"""Short names of an engine's precisions. It must import fast: the command line's help uses it."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.errors import RecipeError
from edgecompress.types.precision import AUTO, FP8, FP16, INT4, INT4_WEIGHTS, INT8, INT8_STATIC, INT8_WEIGHTS


def precisions(quantizes_activations: bool) -> Mapping[str, str]:
    """Return short name -> precision. int8 means int8 weights only for kinds whose activations have outliers."""
    int8 = INT8_STATIC if quantizes_activations else INT8_WEIGHTS
    return {FP16: FP16, INT8: int8, INT4: INT4_WEIGHTS, FP8: FP8}


def resolve(precision: str, quantizes_activations: bool | None) -> str:
    """Raises RecipeError for a precision that engines do not support, or for auto, which needs measurements."""
    known = [precisions(flag) for flag in (True, False) if quantizes_activations in (None, flag)]
    names = ", ".join(known[0])
    if precision == AUTO:
        raise RecipeError(
            "--precision auto needs to time candidates, but an engine cannot be timed where it is built",
            hint=f"Choose one with --precision: {names}.",
        )
    concrete = known[0].get(precision, precision)
    if not any(concrete in each.values() for each in known):
        raise RecipeError(f"this version does not build engines in {precision}", hint=f"Use --precision {names}.")
    return concrete
