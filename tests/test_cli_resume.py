"""Runs that were stopped or killed go on, to the same files as if they had not been."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_cli_prune import PRUNE, TUNED, one_thread, tuned  # noqa: F401  # fixtures

from eigendamage_ext import cli
from eigendamage_ext.runs import candidate, subject
from eigendamage_ext.runs.events import Events, read_events

TESTS = Path(__file__).parent
SWEEP = [
    *"sweep --model tiny_case:net --data tiny_case:loaders".split(),
    *"--flops 0.7 --ratio 0.2 --epochs 2 --lr 0.05".split(),
]


TRIALS = {
    "killed": {"signal": "SIGKILL", "every": 9, "random": 2, "command": [*PRUNE, *TUNED]},
    "killed sweep": {"signal": "SIGKILL", "every": 35, "random": 1, "command": SWEEP},
    "terminated": {"signal": "SIGTERM", "every": 40, "random": 1, "command": [*PRUNE, *TUNED]},
    "interrupted": {"signal": "SIGINT", "every": 35, "random": 0, "command": [*PRUNE, *TUNED]},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What tests/stopped_runs.py finds, by name, and what the runs said."""
    folder = tmp_path_factory.mktemp("stopped")
    command = [sys.executable, str(TESTS / "stopped_runs.py"), str(folder), *map(json.dumps, TRIALS.values())]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return dict(zip(TRIALS, map(json.loads, run.stdout.splitlines()), strict=True)), run.stderr


@pytest.mark.parametrize("name", TRIALS)
def test_a_stopped_run_goes_on_to_the_same_files(name, stopped):
    trials = stopped[0][name]
    assert len(trials) > 2
    for trial in trials:
        assert trial["second"] == 0 and trial["same"] and not (trial["left"] or trial["damaged"]), trial
        ended = Counter(event["stage"] for event in trial["events"] if event["event"] == "ended")
        assert max(ended.values()) == 1, "nothing that was done is done again"


def test_a_killed_run_goes_on_from_the_epoch_it_was_in(stopped):
    trials = stopped[0]["killed"]
    resumed = [trial for trial in trials if any(event["event"] == "resumed" for event in trial["events"])]
    assert len(resumed) > len(trials) // 2 and len(trials) > 8
    for trial in trials:
        assert trial["first"] == -signal.SIGKILL or "after" in trial
        epochs = [event["epoch"] for event in trial["events"] if event["event"] == "epoch"]
        assert sorted(set(epochs)) == [1, 2, 3] and len(epochs) <= 4, "at most one is repeated"


@pytest.mark.parametrize(("word", "code"), [("terminated", 143), ("interrupted", 130)])
def test_a_signal_stops_cleanly_and_it_is_said_how_to_go_on(word, code, stopped):
    trials, told = stopped[0][word], stopped[1]
    assert all(trial["first"] == code or "after" in trial for trial in trials)
    assert f"{word}; run the same command again and it goes on from there" in told
    assert any(event["event"] == "stopped" for trial in trials for event in trial["events"])


def refused(options, capsys):
    """Exit code and last line of a command that fails."""
    code = cli.main([*options, "--quiet"])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_another_configuration_is_refused_until_started_over(tuned, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    assert cli.main([*PRUNE, *TUNED, "-o", str(out), "--quiet"]) == 0
    before = (out / "net.safetensors").read_bytes()
    other = [*PRUNE, *TUNED, "--flops", "0.8", "--epochs", "1", "--lr", "0.1", "--seed", "1", "-o", str(out)]
    code, line = refused(other, capsys)
    assert code == 1 and (out / "net.safetensors").read_bytes() == before
    got = "got seed 3 in place of 1, epochs 3 in place of 1, lr 0.05 in place of 0.1 and 1 more in"
    assert got in line and "choose another with -o, or throw that run away with --start-over" in line
    (out / "mine.txt").write_text("kept")
    assert cli.main([*other, "--start-over", "--quiet"]) == 0
    assert json.loads((out / "result.json").read_text())["target"] == {"flops": 0.8}
    assert (out / "mine.txt").read_text() == "kept" and "resumed" not in (out / "events.jsonl").read_text()
    assert (out / "net.safetensors").read_bytes() != before == (tuned / "net.safetensors").read_bytes()


def test_a_run_that_made_nothing_binds_nobody(tmp_path, capsys):
    out = ["-o", str(tmp_path / "out")]
    code, line = refused([*PRUNE, "--flops", "0.1%", *out], capsys)
    assert code == 1 and "the nearest reachable value is" in line
    assert cli.main([*PRUNE, "--flops", "0.9", *out, "--quiet"]) == 0


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    for name, content in (("net.safetensors", "mine"), ("config.toml", 'flops = "mine"')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        for options in ([], ["--start-over"]):
            code, line = refused([*PRUNE, *TUNED, *options, "-o", str(folder)], capsys)
            assert code == 1 and f"got one that holds '{name}' and no run" in line
        assert (folder / name).read_text() == content
    code, line = refused([*PRUNE, *TUNED, "-o", str(tmp_path / "config.toml" / "config.toml")], capsys)
    assert code == 1 and "output must be a new folder or a run's, got a file" in line


def test_two_processes_do_not_share_a_folder(tuned, capsys):  # noqa: F811
    holder = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tuned / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        code, line = refused([*PRUNE, *TUNED, "-o", str(tuned)], capsys)
        assert code == 1 and "got one that another process works in" in line
        process.kill()
    assert cli.main([*PRUNE, *TUNED, "-o", str(tuned), "--quiet"]) == 0, "the lock ends with the process"


def test_other_weights_and_another_plan_are_refused(tmp_path, capsys, monkeypatch):
    """A run goes on with what it began with."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    out = ["-o", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(candidate.training, "finetune", stop)
        assert cli.main([*PRUNE, *TUNED, *out, "--quiet"]) == 130
    with monkeypatch.context() as patch:
        load = subject.load_network
        patch.setattr(subject, "load_network", lambda *a: load(*a).double())
        code, line = refused([*PRUNE, *TUNED, *out], capsys)
        assert code == 1 and "model must be the one that the run in" in line and "with other weights" in line
    plan = tmp_path / "out" / "plan.json"
    before = plan.read_text()
    plan.write_text(before.replace("eigendamage", "eigendamaged"))
    code, line = refused([*PRUNE, *TUNED, *out], capsys)
    assert code == 1 and "must be what the factors lead to, got another plan" in line
    plan.write_text(before)
    assert cli.main([*PRUNE, *TUNED, *out, "--quiet"]) == 0


def test_other_software_is_noted(tuned, capsys):  # noqa: F811
    path = tuned / "env.json"
    before = path.read_text()
    path.write_text(before.replace('"threads": 1', '"threads": 8'))
    (tuned / "report.html").unlink()
    assert cli.main([*PRUNE, *TUNED, "-o", str(tuned)]) == 0
    assert "note: threads is 1 and was 8 when the run began" in capsys.readouterr().err
    assert read_events(tuned / "events.jsonl")[-3]["changed"] == {"threads": 1}
    path.write_text(before)


def test_a_torn_line_of_events_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path)
    events.add("one", number=1)
    events.add("two")
    path.write_bytes(path.read_bytes()[:-9])
    Events(path).add("three")
    assert [event["event"] for event in read_events(path)] == ["one", "three"]
    assert read_events(path)[0]["number"] == 1 and len(path.read_bytes().splitlines()) == 3
    assert read_events(tmp_path / "absent") == []
