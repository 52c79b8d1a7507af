"""Pickles of plain data, read without running them.

A pickle is a program for a small machine. Python's own looks up any function that the program names and calls
it. This one has instructions only for numbers, strings, lists, dictionaries and NumPy arrays of numbers, and
nothing that looks anything up; an array is put together here, from its bytes. A program that needs more is
refused. Its time and memory are proportional to the file, which is bounded.
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .files import MAX_BYTES, read_bytes

MAX_INSTRUCTIONS = 2**20  # CIFAR-100's training images, with 50,000 file names, take 200,000 to 600,000
MAX_DIMENSIONS = 4
MAX_NAME = 100  # characters of a name or key: they are copied each time they are used
NUMBERS = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}

T = TypeVar("T")


def read_pickle(function: str, path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, strings, whole numbers and lists of these two, of Python 2 or 3.

    Args:
        function: Who asks, for errors.
        path: The file, of protocol 2 or newer.

    Returns:
        Its keys as text; arrays are read-only, strings that Python 2 wrote are bytes.

    Raises:
        ValueError: The file is damaged, too large, or holds anything else. Nothing of it was run.
    """
    machine = _Machine(read_bytes(function, path))
    try:
        return machine.run()
    except (_Refused, UnicodeError) as error:
        fact = f"{error} at byte {machine.position}"
    except (IndexError, KeyError):
        fact = f"an instruction without its operand at byte {machine.position}"
    raise ValueError(
        f"{function}: {path} must be a pickled dictionary of arrays and lists, got {fact}; "
        "it is damaged or something else"
    )


class _Refused(Exception):  # noqa: N818  # says what was found
    pass


class _Name(str):
    """One of the few functions and classes of `_NAMES`: a word, nothing to call."""


class _DType:
    """An element type, whose byte order comes after it."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Array:
    """An array, whose content comes after it."""

    def __init__(self, content: np.ndarray | None = None) -> None:
        self.content = content


_NAMES = {
    ("numpy", "ndarray"): _Name("ndarray"),
    ("numpy", "dtype"): _Name("dtype"),
    ("_codecs", "encode"): _Name("encode"),  # how Python 3 writes bytes in protocol 2
} | {
    (f"numpy.{core}.{module}", name): _Name(name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
}


class _Machine:
    def __init__(self, program: bytes) -> None:
        self.program = program
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> dict[str, Any]:
        """What the program leaves when it stops."""
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == pickle.STOP:
                return {key: _finished(value) for key, value in self.pop(dict).items()}
            if code not in _INSTRUCTIONS:
                raise _Refused(f"the instruction {code!r}")
            _INSTRUCTIONS[code](self)
        raise _Refused(f"more than {MAX_INSTRUCTIONS} instructions")

    def take(self, size: int) -> bytes:
        """The next bytes of the program."""
        end = self.position + size
        if end > len(self.program):
            raise _Refused("its end")
        part, self.position = self.program[self.position : end], end
        return part

    def skip(self, size: int) -> None:
        self.take(size)

    def line(self) -> str:
        """The program up to the end of a line."""
        end = self.program.find(b"\n", self.position, self.position + MAX_NAME)
        if end < 0:
            raise _Refused("a name without end")
        return self.take(end + 1 - self.position)[:-1].decode()

    def number(self, size: int, *, signed: bool = False) -> int:
        """The next bytes, as a number."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, kind: type[T]) -> T:
        """The top of the stack, of exactly this type."""
        return _expect(kind, self.stack.pop())

    def top(self, kind: type[T]) -> T:
        return _expect(kind, self.stack[-1])

    def since_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        """The last values pushed."""
        return tuple(self.stack.pop() for _ in range(count))[::-1]

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5:
            raise _Refused(f"pickle protocol {version}")

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(self.data(items, int, str, bytes))

    def update(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise _Refused("a key without a value")
        # Text alone: its hashes are Python's secret, where numbers could be chosen to collide.
        values = self.data(items[1::2], int, str, bytes, list, _Array)
        target.update(zip(map(_text, items[::2]), values, strict=True))

    def data(self, items: list[Any], *kinds: type) -> list[Any]:
        """Items of these types. What is put together is thus flat, and never walked in depth."""
        for item in items:
            if type(item) not in kinds:
                raise _Refused(f"{_kind(item)} among the data")
        return items

    def find(self, module: str, name: str) -> None:
        if (module, name) not in _NAMES:
            raise _Refused(f"the name {module[:40]}.{name[:40]}")
        self.push(_NAMES[module, name])

    def call(self) -> None:
        arguments = self.pop(tuple)
        match str(self.pop(_Name)), arguments:
            case "_reconstruct", (_Name() as kind, (0,), _) if kind == "ndarray":
                self.push(_Array())
            case "_frombuffer", (bytes() as content, _DType() as kind, tuple() as shape, "C" | "F" as order):
                self.push(_Array(_array(content, kind, shape, fortran=order == "F")))
            case "dtype", (code, _, _) if _text(code) in NUMBERS:
                self.push(_DType(np.dtype(_text(code))))
            case "encode", (str() as text, "latin1"):
                self.push(self.encode(text))
            case name, _:
                raise _Refused(f"a call of {name} with other arguments")

    def encode(self, text: str) -> bytes:
        self.encoded += len(text)
        if self.encoded > MAX_BYTES:  # one text, encoded again and again
            raise _Refused(f"more than {MAX_BYTES} bytes")
        return text.encode("latin1")

    def build(self) -> None:
        state = self.pop(tuple)
        match self.stack[-1], state:
            case _Array() as array, (1, tuple() as shape, _DType() as kind, fortran, bytes() as content):
                array.content = _array(content, kind, shape, fortran=fortran is True or fortran == 1)
            case _DType() as kind, (3, order, None, None, None, -1, -1, 0) if _text(order) in ("<", ">", "|"):
                kind.dtype = np.dtype(_text(order) + kind.dtype.str[1:])
            case target, _:
                raise _Refused(f"a state that {_kind(target)} cannot have")


def _expect(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise _Refused(f"{_kind(value)} where {kind.__name__.strip('_')} belongs")
    return value


def _kind(value: object) -> str:
    return type(value).__name__.strip("_")


def _text(value: object) -> str:
    """A name or key, which Python 2 writes as bytes."""
    text = value[: MAX_NAME + 1].decode("latin1") if type(value) is bytes else _expect(str, value)
    if len(text) > MAX_NAME:
        raise _Refused(f"a name of more than {MAX_NAME} characters")
    return text


def _array(content: bytes, kind: _DType, shape: tuple[Any, ...], *, fortran: bool) -> np.ndarray:
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 1 <= n <= MAX_BYTES for n in shape):
        raise _Refused("an array of no possible shape")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise _Refused(f"{len(content)} bytes for an array {shape} of {kind.dtype}")
    return np.ndarray(shape, kind.dtype, content, order="F" if fortran else "C")


def _finished(value: object) -> object:
    if not isinstance(value, _Array):
        return value
    if value.content is None:
        raise _Refused("an array without content")
    return value.content


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.FRAME: lambda m: m.skip(8),
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT1: lambda m: m.push(m.number(1)),
    pickle.BININT2: lambda m: m.push(m.number(2)),
    pickle.BININT: lambda m: m.push(m.number(4, signed=True)),
    pickle.LONG1: lambda m: m.push(m.number(m.number(1), signed=True)),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.take(m.number(1))),
    pickle.BINSTRING: lambda m: m.push(m.take(m.number(4))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number(1))),
    pickle.BINBYTES: lambda m: m.push(m.take(m.number(4))),
    pickle.BINBYTES8: lambda m: m.push(m.take(m.number(8))),
    pickle.BYTEARRAY8: lambda m: m.push(m.take(m.number(8))),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.take(m.number(1)).decode()),
    pickle.BINUNICODE: lambda m: m.push(m.take(m.number(4)).decode()),
    pickle.BINUNICODE8: lambda m: m.push(m.take(m.number(8)).decode()),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.TUPLE1: lambda m: m.push(m.last(1)),
    pickle.TUPLE2: lambda m: m.push(m.last(2)),
    pickle.TUPLE3: lambda m: m.push(m.last(3)),
    pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.update(list(m.last(2))),
    pickle.SETITEMS: lambda m: m.update(m.since_mark()),
    pickle.BINPUT: lambda m: m.remember(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number(4)),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: lambda m: m.push(m.memo[m.number(1)]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number(4)]),
    pickle.GLOBAL: lambda m: m.find(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.find(*map(_text, m.last(2))),
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
}
