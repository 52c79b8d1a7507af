"""``package.module:factory``: what a configuration names and the user's own code makes."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from eigendamage_ext._tables import nearest


def is_factory(text: str) -> bool:
    """Whether a text has the form of a factory's name."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in module.split(".")) and name.isidentifier()


def made_by(text: str, what: str) -> Any:
    """What a factory returns; its module is looked for in the current folder, too.

    Args:
        text: "package.module:factory".
        what: The setting and its command, for messages: "prune: model".

    Raises:
        ValueError: There is no such module or name, or it raised something itself, which is then the cause.
    """
    module, _, name = text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    rule = f"{what} must be package.module:factory"
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise ValueError(
                f"{rule}, got {text!r} where no module {error.name!r} is found; it is looked for in the "
                "current folder and where Python looks for modules"
            ) from None
        raise ValueError(f"{rule}, got {text!r}, whose import failed: {error}") from error
    except Exception as error:
        raise ValueError(f"{rule}, got {text!r}, whose import failed: {_first(error)}") from error
    if not hasattr(found, name):
        right = nearest(name, [known for known in vars(found) if not known.startswith("_")] or ["none"])
        raise ValueError(
            f"{rule}, got {text!r}, and there is no {name!r} in it; the nearest name is {right!r}"
        )
    factory = getattr(found, name)
    if not callable(factory):
        raise ValueError(f"{rule}, got {text!r}, a {type(factory).__name__}; name a function or a class")
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"{what}: {text} failed: {_first(error)}; see where with --debug") from error


def _first(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
