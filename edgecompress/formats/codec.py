"""Converts frozen dataclasses to JSON values and back, strictly: errors name the wrong or unknown field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

T = TypeVar("T")


def to_jsonable(value: Any) -> Any:
    """Dataclasses become dicts, tuples become lists, paths become strings; None stays None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def dumps(value: Any) -> str:
    """JSON with sorted keys, an indent of two and a final newline: equal values give equal bytes."""
    return json.dumps(to_jsonable(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def from_jsonable(cls: type[T], data: Any, where: str = "") -> T:
    """Build ``cls`` from a dict. Raises ValueError naming the field that is missing, unknown or of the wrong type."""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the document'} must be a table, not {_kind(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ValueError(f"unknown key '{_join(where, key)}'")
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], _join(where, name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"key '{_join(where, name)}' is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        problems = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _convert(option, value, where)
            except ValueError as error:
                problems.append(str(error))
        raise ValueError(problems[0])
    if dataclasses.is_dataclass(hint):
        return from_jsonable(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin in (dict, Mapping) or hint is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"'{where}' must be a table, not {_kind(value)}")
        return {k: _convert(arguments[1], v, _join(where, k)) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    raise ValueError(f"'{where}' must be {hint.__name__}, not {_kind(value)}")


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"'{where}' must be a list, not {_kind(value)}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise ValueError(f"'{where}' must have {len(arguments)} entries, not {len(value)}")
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
