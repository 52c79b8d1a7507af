"""The command line: ``eigendamage``, or ``python -m eigendamage_ext``.

Each command is a module with ``add(commands)``, its parser, and ``run(options)``, what it does. They import
nothing heavy before they run, so that --help is there at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from eigendamage_ext import __version__
from eigendamage_ext.cli import bench, bench_model, demo, export, info, inspect, plan, prune, sweep
from eigendamage_ext.cli.parsing import Parser, check_command, nearest_option
from eigendamage_ext.cli.signals import Terminated, termination_raises

COMMANDS = (prune, plan, sweep, inspect, bench_model, export, demo, bench, info)

# Exit codes, besides 0.
FAILED = 1  # told in one sentence on standard error
WRONG_USAGE = 2  # an option, a key of a configuration or a value that does not exist
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: After --help, with 0, and after wrong usage, with 2.
        Exception: Whatever went wrong, with --debug.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    check_command(parser, arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unknown option {unknown[0]}{nearest_option(unknown[0], options.parser)}")
    try:
        with termination_raises(), plain_warnings():
            code = int(options.run(options))
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        word, code = (
            ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        )
        _tell(f"\n{word}; {options.after_interrupt}")
        return code
    except BrokenPipeError:  # whoever read what was printed has seen enough
        with suppress(OSError):  # or the interpreter would complain when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except argparse.ArgumentError as error:
        if options.debug:
            raise
        options.parser.print_usage(sys.stderr)
        _tell(f"{options.parser.prog}: error: {error.message}")
        return WRONG_USAGE
    except Exception as error:
        if options.debug:
            raise
        _tell(_sentence(error))
        return FAILED


def _parser() -> Parser:
    program = "python -m eigendamage_ext" if Path(sys.argv[0]).name == "__main__.py" else "eigendamage"
    parser = Parser(prog=program, description="Structured pruning in the Kronecker-factored eigenbasis.")
    parser.add_argument("--version", action="version", version=f"eigendamage-ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _sentence(error: Exception) -> str:
    """What went wrong; of a kind that nobody foresaw, also what to do about it."""
    foreseen = (ValueError, TypeError, NotImplementedError, ArithmeticError, OSError, ImportError)
    if isinstance(error, foreseen) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}; run it again with --debug to see where"


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within it a warning is a line on standard error, told once."""
    told = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            _tell(f"note: {message}")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


def _tell(text: str) -> None:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr)
