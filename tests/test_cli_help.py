"""Every command explains itself, with examples that its parser takes."""

import argparse
import shlex

import pytest

from eigendamage_ext import cli


def parsers():
    actions = cli._parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


def examples(command):
    """The command lines below the options."""
    lines = (parsers()[command].epilog or "").replace("\\\n", "").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("eigendamage ")]


COMMANDS = list(parsers())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"usage: eigendamage {command}" in text or f" {command} " in text.splitlines()[0]
    assert all(example in text for example in examples(command)) and max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_taken(command):
    assert len(examples(command)) >= 2
    for example in examples(command):
        program, *arguments = shlex.split(example, comments=True)
        options, unknown = cli._parser().parse_known_args(arguments)
        assert (program, options.command, unknown) == ("eigendamage", command, [])
