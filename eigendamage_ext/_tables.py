"""Dataclasses from TOML and back: keys, types and choices are checked, the nearest right one is named."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def read_toml(path: Path, *, caller: str) -> dict[str, Any]:
    """The table in a file, whatever its keys.

    Raises:
        ValueError: The file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{caller}: --config must name a TOML file, got {path} ({error})") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another."""
    return difflib.get_close_matches(name, list(known), 1, cutoff=0.0)[0]


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
    """A ValueError where a value is none of those known."""
    if value not in (known := list(known)):
        raise ValueError(
            f"{what} must be one of {', '.join(known)}, got {value!r}; the nearest right one is "
            f"{nearest(value, known)!r}"
        )


def build(kind: type, table: Any, where: str, *, also: Iterable[str] = ()) -> Any:
    """A dataclass from a table.

    Args:
        kind: The dataclass; its fields are the keys, its annotations the types. A tuple takes one value, too.
        table: Key to value, as TOML has them.
        where: What the table is called.
        also: Further keys that the caller has taken out, to be named where one is misspelt.

    Raises:
        ValueError: An unknown key, a missing one or a value of another type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table, got {table!r}")
    types_, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for key in (key for key in table if key not in known):
        right = nearest(key, [*known, *also])
        raise ValueError(f"{where} must have known keys, got {key!r}; the nearest right one is {right!r}")
    missing = [
        name for name, f in known.items() if f.default is f.default_factory is MISSING and name not in table
    ]
    if missing:
        raise ValueError(
            f"{where} must have {' and '.join(map(repr, missing))}, got {', '.join(table) or 'nothing'}"
        )
    return kind(**{key: _value(types_[key], value, key, where) for key, value in table.items()})


def _value(kind: Any, value: Any, key: str, where: str) -> Any:
    """A value as its field has it."""
    if get_origin(kind) is types.UnionType:
        parts = [part for part in get_args(kind) if part is not types.NoneType]
        kind = next((part for part in parts if type(value) is part), parts[0])
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key!r} must be tables [{key}.NAME], got {value!r}")
        return {name: build(get_args(kind)[1], table, f"[{key}.{name}]") for name, table in value.items()}
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        values = value if isinstance(value, list) else [value]
        if is_dataclass(part):
            assert isinstance(part, type)
            return tuple(build(part, table, f"[[{key}]]") for table in values)
        return tuple(_value(part, item, key, where) for item in values)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return build(kind, value, f"[{key}]")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{key!r} in {where} must be of type {kind.__name__}, got {value!r}")
    return value


def to_toml(table: Mapping[str, Any]) -> str:
    """A flat table as TOML, one line for each key; what is None is left out."""
    return "".join(f"{key} = {_text(value)}\n" for key, value in table.items() if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # as a TOML basic string
    return str(value).lower() if isinstance(value, bool) else repr(value)
