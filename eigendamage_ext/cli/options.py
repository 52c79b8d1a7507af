"""Settings from the command line and a TOML file: one field, one option, one key, of one name."""

import argparse
import types
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from eigendamage_ext._tables import build, read_toml
from eigendamage_ext.cli.parsing import Parser
from eigendamage_ext.runs.settings import Settings

S = TypeVar("S", bound=Settings)


def add_settings(parser: Parser, kind: type[Settings]) -> None:
    """An option for every field, in sections by the group it comes from, and --config."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file of options by their names, with _ for -; what the command line says counts more",
    )
    hints, known = get_type_hints(kind), {entry.name: entry for entry in fields(kind)}
    groups = [base for base in kind.__mro__ if issubclass(base, Settings) and "__annotations__" in vars(base)]
    for base in groups:
        own = [name for name in vars(base)["__annotations__"] if name in known]
        if own:
            assert base.__doc__
            section = parser.add_argument_group(base.__doc__.rstrip("."))
            for name in own:
                _add(section, known[name], hints[name])


def _add(section: argparse._ArgumentGroup, entry: Field[Any], hint: Any) -> None:
    kind, many = _kind(hint)
    how = entry.metadata
    names = [f"--{entry.name.replace('_', '-')}", *filter(None, [how["short"]])]
    text = how["help"] + (f": {', '.join(how['known'])}" if how["known"] else "")
    default: Any = entry.default
    if default is not MISSING and default is not None and default != () and kind is not bool:
        text += f" ({' '.join(default) if many else default})"
    settings: dict[str, Any] = {
        "dest": entry.name,
        "default": argparse.SUPPRESS,
        "help": text.replace("%", "%%"),
    }
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings |= {"type": kind, "metavar": how["name"] or {int: "N", float: "X"}.get(kind, "WORD")}
    if many:
        settings["nargs"] = "+"
    section.add_argument(*names, **settings)


def _kind(hint: Any) -> tuple[type, bool]:
    """What a word of the command line becomes, and whether there may be several."""
    parts = [part for part in get_args(hint) or (hint,) if part is not types.NoneType]
    if get_origin(hint) is tuple or get_origin(parts[0]) is tuple:
        return _kind(get_args(hint if get_origin(hint) is tuple else parts[0])[0])[0], True
    return (str if str in parts else parts[0]), False


def read_settings(options: argparse.Namespace, kind: type[S], base: dict[str, Any] | None = None) -> S:
    """The settings that were given.

    Args:
        options: What the parser of `add_settings` made of the command line.
        kind: The settings' class.
        base: What counts where neither the command line nor the file says anything.

    Raises:
        argparse.ArgumentError: A value or a key of the file is wrong, or one that is needed was not given.
    """
    try:
        table = {} if options.config is None else read_toml(options.config, caller=options.command)
        given = {entry.name: getattr(options, entry.name) for entry in fields(kind) if entry.name in options}
        where = "the command line" if options.config is None else str(options.config)
        found: S = build(kind, {**(base or {}), **table, **given}, where)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    return found
