"""What a module does, as a list of steps, and the same as JSON.

A step is a function, a method, a submodule or a tensor by name, with its arguments. Values are numbered: the
inputs first, then one for each step. A step refers to values before it, so there are no circles.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from eigendamage_ext._files import ArtifactError
from eigendamage_ext.artifact.allowlist import ATTRIBUTES, DTYPES, FUNCTIONS, MEMORY_FORMATS, METHODS, WORDS

STEPS, DEPTH = 20_000, 16  # the most of one graph; the most values inside values
KINDS: Mapping[str, Mapping[str, Any] | frozenset[str] | None] = {
    "function": FUNCTIONS,
    "method": METHODS,
    "attribute": ATTRIBUTES,
    "module": None,
    "tensor": None,
}
_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,99}")
_PATH = re.compile(r"(?!__|.*\.__)[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,31}")
_EINSUM = re.compile(r"[A-Za-z., ]{1,100}->[A-Za-z. ]{0,50}")


class UntraceableError(Exception):
    """Why what a model does cannot be written down."""


class Value(NamedTuple):
    """What an input or an earlier step gave.

    Attributes:
        number: Which.
    """

    number: int


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: One of `KINDS`.
        target: Its name in the table of its kind; of a module or tensor its path in the module.
        args: Positional arguments: constants, `Value`, and tuples, lists and slices of them. The first of a
            method or an attribute is what it belongs to.
        kwargs: Keyword arguments.
    """

    kind: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """What a module does.

    Attributes:
        inputs: Names of its arguments.
        steps: In the order in which they run.
        output: What it returns, made of what arguments are made of.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    output: Any

    def to_json(self) -> dict[str, Any]:
        """The graph in lists and objects.

        Raises:
            UntraceableError: No file may hold something in it.
        """
        steps = [
            [
                step.kind,
                step.target,
                [to_json(value) for value in step.args],
                {name: to_json(value) for name, value in step.kwargs.items()},
            ]
            for step in self.steps
        ]
        return {"inputs": list(self.inputs), "steps": steps, "output": to_json(self.output)}

    @classmethod
    def from_json(cls, data: Any) -> "Graph":
        """The graph that `to_json` wrote, not trusted.

        Raises:
            ArtifactError: It is something else.
        """
        match data:
            case {"inputs": [*inputs], "steps": [*steps], "output": output}:
                pass
            case _:
                raise refusal("a graph", "have inputs, steps and an output", data)
        if not all(map(is_name, inputs)):
            raise refusal("inputs of a graph", "be plain names", inputs)
        if len(set(inputs)) < len(inputs):
            raise refusal("inputs of a graph", "have different names", inputs)
        if len(steps) > STEPS:
            raise refusal("a graph", f"have at most {STEPS:,} steps", len(steps))
        known = len(inputs)
        return cls(
            tuple(inputs),
            tuple(_step(step, known + place) for place, step in enumerate(steps)),
            from_json(output, known + len(steps)),
        )


class Graphs(NamedTuple):
    """What a module does in its two modes; mostly the same."""

    training: Graph
    evaluation: Graph


def is_path(text: Any) -> bool:
    """Whether it is a path of plain names, without double underscores before any of them."""
    return isinstance(text, str) and _PATH.fullmatch(text) is not None


def is_word(text: str) -> bool:
    """Whether it is a word that an operation knows, or the equation of an einsum."""
    return text in WORDS or _EINSUM.fullmatch(text) is not None


def is_name(text: Any) -> bool:
    """Whether it is one plain name, as a variable may have."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def joined(path: str, name: str) -> str:
    """The path of what lies inside of another."""
    return f"{path}.{name}" if path else name


def refusal(what: str, rule: str, got: Any) -> ArtifactError:
    """The error for something a file may not hold."""
    return ArtifactError(
        f"load: {what} must {rule}, got {reprlib.repr(got)}; save the model again, with this version or an "
        "older one"
    )


def to_json(value: Any) -> Any:
    """A constant, or anything that a step takes, as JSON.

    Raises:
        UntraceableError: No file may hold it.
    """
    match value:
        case None | bool() | int():
            return value
        case str() if is_word(value):
            return value
        case float():
            return value if math.isfinite(value) else {"float": str(value)}
        case Value(number):
            return {"value": number}
        case tuple():
            return {"tuple": [to_json(part) for part in value]}
        case list():
            return [to_json(part) for part in value]
        case slice():
            return {"slice": [to_json(part) for part in (value.start, value.stop, value.step)]}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.memory_format():
            return {"memory_format": str(value).removeprefix("torch.")}
        case torch.device() if str(value) == "cpu":
            return {"device": "cpu"}
        case _ if value is Ellipsis:
            return {"ellipsis": []}
        case _:
            raise UntraceableError(f"it computes with {reprlib.repr(value)}, which no file may hold")


def from_json(data: Any, known: int = 0, depth: int = 0) -> Any:
    """What `to_json` wrote, not trusted.

    Args:
        data: JSON.
        known: How many values there are to refer to; 0: it must be a constant.
        depth: How deep it lies in other values.

    Raises:
        ArtifactError: It is something else.
    """
    if depth > DEPTH:
        raise refusal("values", f"be nested at most {DEPTH} deep", data)

    def parts(items: Any, count: int | None = None) -> Iterator[Any]:
        if not isinstance(items, list) or count not in (None, len(items)):
            raise refusal("parts of a value", f"be a list{f' of {count}' if count else ''}", items)
        return (from_json(item, known, depth + 1) for item in items)

    match data:
        case None | bool():
            return data
        case int() if abs(data) < 2**63:
            return data
        case float() if math.isfinite(data):
            return data
        case str() if is_word(data):
            return data
        case list():
            return [*parts(data)]
        case {"tuple": items, **rest} if not rest:
            return tuple(parts(items))
        case {"slice": items, **rest} if not rest:
            return slice(*parts(items, 3))
        case {"value": int(number), **rest} if not rest and type(number) is int and 0 <= number < known:
            return Value(number)
        case {"float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
            return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[text]
        case {"dtype": str(name), **rest} if not rest and name in DTYPES:
            return DTYPES[name]
        case {"memory_format": str(name), **rest} if not rest and name in MEMORY_FORMATS:
            return MEMORY_FORMATS[name]
        case {"device": "cpu", **rest} if not rest:
            return torch.device("cpu")
        case {"ellipsis": [], **rest} if not rest:
            return Ellipsis
        case _:
            raise refusal("a value", "be a constant this version knows, or refer to one before it", data)


def _step(data: Any, known: int) -> Step:
    match data:
        case [str(kind), str(target), [*args], dict(kwargs)] if kind in KINDS:
            pass
        case _:
            raise refusal("a step", f"be one of {', '.join(KINDS)} with its arguments", data)
    table = KINDS[kind]
    if not (is_path(target) if table is None else target in table):
        raise refusal(f"the {kind} of a step", "be one that this version knows", target)
    if not all(map(is_name, kwargs)):
        raise refusal("keywords of a step", "be plain names", list(kwargs))
    return Step(
        kind,
        target,
        tuple(from_json(value, known) for value in args),
        {name: from_json(value, known) for name, value in kwargs.items()},
    )
