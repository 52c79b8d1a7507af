"""What the parsers of all commands share: one look, --debug, and the nearest right name for a wrong one."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from eigendamage_ext._tables import nearest

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their full names and prints description and examples as they stand."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: str = "",
    after_interrupt: str = "nothing is lost",
) -> Parser:
    """A parser for a command.

    Args:
        commands: What it is added to.
        name: Of the command.
        run: Does it and returns the exit code. Any exception is told in one sentence, exit code 1; an
            `argparse.ArgumentError` as wrong usage, exit code 2.
        help: A line for the list of commands.
        description: A few lines for its own --help.
        examples: Command lines, shown below the options.
        after_interrupt: What is left after Ctrl-C or SIGTERM, and how to go on.
    """
    epilog = f"examples:\n{examples}" if examples else None
    parser = commands.add_parser(name, help=help, description=description, epilog=epilog)
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=run, parser=parser, after_interrupt=after_interrupt)
    return parser


def add_network(parser: Parser) -> None:
    """The arguments of a command that runs a network from a file."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the network")
    parser.add_argument(
        "--model",
        metavar="NETWORK",
        help="package.module:factory that builds it, for a file that does not say what its network does",
    )
    parser.add_argument(
        "--input", type=input_shape, metavar="SHAPE", help="of one example (that of the plan in the file)"
    )


def positive_integer(text: str) -> int:
    """A number of things, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def input_shape(text: str) -> tuple[int, ...]:
    """The shape of one example, 3x32x32, from the command line."""
    try:
        shape = tuple(int(part) for part in text.replace("×", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be numbers like 3x32x32, got {text!r}")
    return shape


def check_command(parser: Parser, arguments: Sequence[str]) -> None:
    """Ends with wrong usage where the first argument is no command, and names the nearest."""
    known = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    name = next((a for a in arguments if not a.startswith("-")), None)
    if name is not None and name not in known:
        parser.error(f"unknown command {name!r}{did_you_mean(name, known)}")


def nearest_option(option: str, parser: Parser) -> str:
    """Which of a parser's options may have been meant."""
    known = [name for action in parser._actions for name in action.option_strings]
    return did_you_mean(option.partition("=")[0], known) if option.startswith("-") else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean …?"``, with the nearest right name."""
    return f"; did you mean {nearest(name, known)}?"
