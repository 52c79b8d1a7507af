"""Values out of JSON that nobody vouches for: of the kind that is expected, absent, or an error."""

import reprlib
from collections.abc import Mapping
from typing import Any

from eigendamage_ext._files import ArtifactError

LONGEST = 1000  # characters of a text


def text(data: Mapping[str, Any], key: str) -> str | None:
    """A text; what is too long is cut."""
    value = data.get(key)
    if value is None or isinstance(value, str):
        return value and value[:LONGEST]
    raise _refusal(key, "text", value)


def number(data: Mapping[str, Any], key: str) -> float | None:
    """A finite number."""
    value = data.get(key)
    if value is None or (type(value) in (int, float) and abs(value) < 2**63):  # as NaN is not
        return value
    raise _refusal(key, "a finite number", value)


def numbers(data: Mapping[str, Any], key: str) -> dict[str, float | None]:
    """Numbers by name."""
    found = record(data, key)
    return {name: number(found, name) for name in found}


def texts(data: Mapping[str, Any], key: str) -> dict[str, str | None]:
    """Texts by name."""
    found = record(data, key)
    return {name: text(found, name) for name in found}


def counts(data: Mapping[str, Any], key: str, length: int | None = None) -> list[int] | None:
    """A list of whole numbers that are not negative."""
    value = data.get(key)
    if value is None:
        return None
    if (
        isinstance(value, list)
        and length in (None, len(value))
        and all(type(part) is int and 0 <= part < 2**63 for part in value)
    ):
        return value
    raise _refusal(key, f"a list of {f'{length} ' if length else ''}counts", value)


def record(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object; an empty one where there is none."""
    value = data.get(key)
    if value is None or isinstance(value, dict):
        return value or {}
    raise _refusal(key, "an object", value)


def records(data: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Objects by name."""
    found = record(data, key)
    return {name: record(found, name) for name in found}


def rows(data: Mapping[str, Any], key: str, columns: tuple[str, ...]) -> list[dict[str, float | None]]:
    """A list of objects, of each the numbers in these columns."""
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise _refusal(key, "a list of objects", value)
    return [{column: number(row, column) for column in columns} for row in value]


def _refusal(key: str, rule: str, got: Any) -> ArtifactError:
    name = reprlib.repr(key)
    return ArtifactError(
        f"inspect: {name} in the file must be {rule}, got {reprlib.repr(got)}; save it again"
    )
