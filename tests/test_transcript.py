"""README.md's transcript is of the commands that the script types."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks import transcript
from eigendamage_ext import cli


def test_the_page_is_in_step():
    _, _, rest = transcript.README.read_text().partition(transcript.BEGIN)
    text, end, _ = rest.partition(transcript.END)
    assert end and text.startswith("```console\n") and text.endswith("```\n")
    typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)  # a command may go on in the next line
    assert typed == [*transcript.COMMANDS]
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("command", transcript.COMMANDS)
def test_its_commands_are_taken(command):
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    options, unknown = cli._parser().parse_known_args(arguments)
    assert program == "eigendamage" and not unknown and callable(options.run)


def test_what_is_printed_goes_between_the_markers(tmp_path, monkeypatch):
    page = f"a\n{transcript.BEGIN}old\n{transcript.END}b\n"
    assert transcript.replaced(page, "new\n") == page.replace("old", "new")
    monkeypatch.setattr(transcript, "COMMANDS", ("eigendamage --version", "eigendamage info --json"))
    network = tmp_path / "network"
    network.write_text("weights")
    text = transcript.transcript(network)
    assert text.startswith("```console\n$ eigendamage --version\neigendamage-ext ")
    assert '\n\n$ eigendamage info --json\n{\n  "versions": {' in text and text.endswith("\n}\n```\n")


def test_a_command_that_fails_leaves_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(transcript, "COMMANDS", ("eigendamage inspect absent",))
    (tmp_path / "network").touch()
    before = transcript.README.read_bytes()
    monkeypatch.setattr("sys.argv", ["transcript", str(tmp_path / "network")])
    with pytest.raises(subprocess.CalledProcessError):
        transcript.main()
    assert Path(transcript.README).read_bytes() == before
