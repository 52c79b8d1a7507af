"""The command line as a whole: what it says before, instead of and after a command."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import tomllib
import warnings
from pathlib import Path

import pytest

import eigendamage_ext
from eigendamage_ext import cli


def ended(arguments, capsys):
    """Exit code, and the last line on standard error."""
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def bench_is(monkeypatch):
    """Replaces what `bench` does."""

    def replace(run):
        add = cli.bench.add

        def added(commands):
            add(commands)
            commands.choices["bench"].set_defaults(run=run)

        monkeypatch.setattr(cli.bench, "add", added)

    return replace


def raising(error):
    def run(options):
        raise error

    return run


def test_help_does_not_wait_for_torch():
    program = (
        "import sys; from eigendamage_ext.cli import main\n"
        "try: main([*sys.argv[1:], '--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    for command in ([], ["demo"], ["bench"]):
        run = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
        assert run.returncode == 0 and "usage:" in run.stdout


def test_public_names_are_there_when_asked_for():
    for name in eigendamage_ext.__all__:
        assert name in dir(eigendamage_ext) and getattr(eigendamage_ext, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        _ = eigendamage_ext.prun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmo"], "unknown command 'dmo'; did you mean demo?"),
        (["--debug", "bench"], "unknown option --debug"),
        (["demo", "--seed", "3"], "demo: error: unknown option --seed; did you mean --seeds?"),
        (["demo", "--sedes=3"], "did you mean --seeds?"),
        (["bench", "more"], "bench: error: unknown option more"),
    ],
)
def test_wrong_usage_names_the_nearest_right_one(arguments, message, capsys):
    code, line = ended(arguments, capsys)
    assert code == 2 and message in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("bench: this must be that"), 1, "bench: this must be that"),
        (OSError(28, "No space left on device", "x"), 1, "[Errno 28] No space left on device: 'x'"),
        (KeyError("x"), 1, "KeyError: 'x'; run it again with --debug to see where"),
        (RuntimeError("x"), 1, "RuntimeError: x; run it again with --debug to see where"),
        (argparse.ArgumentError(None, "no such thing"), 2, "bench: error: no such thing"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is lost"),
    ],
)
def test_exit_codes(error, code, line, bench_is, capsys):
    bench_is(raising(error))
    got, message = ended(["bench"], capsys)
    assert got == code and message.endswith(line)
    if code == 1:
        with pytest.raises(type(error)):
            cli.main(["bench", "--debug"])


def test_sigterm_ends_as_ctrl_c_does(bench_is, capsys):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def run(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        finally:
            cleaned.append(True)

    bench_is(run)
    assert ended(["bench"], capsys) == (143, "terminated; nothing is lost")
    assert cleaned == [True] and signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_news(bench_is, capsys):
    bench_is(raising(BrokenPipeError(32, "Broken pipe")))
    assert cli.main(["bench"]) == 1 and capsys.readouterr().err == ""


def test_a_warning_is_a_line_told_once(bench_is, capsys):
    def run(options):
        for _ in range(2):
            warnings.warn("take care", stacklevel=1)
        return 0

    bench_is(run)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["bench"]) == 0
        assert capsys.readouterr().err == "note: take care\n" and warnings.showwarning is before


def test_the_console_script_is_this_command_line():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"eigendamage": f"{cli.main.__module__}:{cli.main.__name__}"}


def test_commands_run_in_any_thread(bench_is):
    bench_is(lambda options: 7)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["bench"])))
    thread.start()
    thread.join()
    assert codes == [7]
