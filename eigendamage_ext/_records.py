"""Dataclasses and typed dictionaries made of JSON that is not trusted."""

import math
import reprlib
from collections.abc import Collection
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def record(kind: type[T], data: Any) -> T:
    """One made of its fields in JSON, where lists stand for tuples; in its order, and of the types it states.

    Raises:
        ValueError: It is something else.
    """
    hints, name = get_type_hints(kind), kind.__name__.removeprefix("_")
    if not isinstance(data, dict) or not data.keys() <= hints.keys():
        raise ValueError(f"{name} must have the fields {', '.join(hints)}, got {reprlib.repr(data)}")
    required: frozenset[str] = getattr(kind, "__required_keys__", frozenset())
    if missing := required - data.keys():
        raise ValueError(f"{name} must be complete, got none of {sorted(missing)}")
    values = {key: data[key] for key in hints if key in data}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in values.items():
        if not _is(value, hints[key]):
            wanted = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
            raise ValueError(f"{key} must be {wanted}, got {reprlib.repr(value)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{name} must be complete, got {reprlib.repr(data)}") from error


def check_sizes(name: str, values: Collection[int], least: int = 1) -> None:
    """A ValueError where one of the numbers is less than it may be."""
    if any(value < least for value in values):
        raise ValueError(f"{name} must be at least {least}, got {reprlib.repr(values)}")


def check_one_of(name: str, value: Any, known: Collection[Any]) -> None:
    """A ValueError where a value is none that is known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {reprlib.repr(value)}")


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: integers have 64 bits, and floats are finite or such integers."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_is, value, kinds))
    if hint is Any:
        return True
    if origin is dict:
        return isinstance(value, dict) and all(_is(part, parts[1]) for part in value.values())
    if hint is float and type(value) is float:
        return math.isfinite(value)
    if hint in (int, float):
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) is hint
