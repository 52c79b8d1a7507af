"""Checks of plain arguments."""

import operator

import torch

HALVES = (torch.bfloat16, torch.float16)


def check_word(caller: str, argument: str, word: object, allowed: tuple[str, ...]) -> None:
    """Refuses a word that is none of the allowed ones."""
    if word not in allowed:
        raise ValueError(
            f"{caller}: {argument} must be one of {', '.join(map(repr, allowed))}, got {word!r}; "
            "choose one of them"
        )


def check_integer(caller: str, argument: str, value: int, *, least: int | None = None) -> int:
    """Returns an integer of any type as an int; refuses anything else, and what is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{caller}: {argument} must be an integer, got {value!r}; convert it with int()"
        ) from None
    if least is not None and number < least:
        raise ValueError(f"{caller}: {argument} must be at least {least}, got {number}; the default will do")
    return number


def check_autocast(caller: str, dtype: object) -> None:
    """Refuses a dtype under which no pass runs."""
    if dtype is not None and dtype not in HALVES:
        raise ValueError(
            f"{caller}: autocast must be torch.bfloat16, torch.float16 or None, got {dtype!r}; "
            "None runs the model in the dtype it has"
        )
