"""A full disk: whoever writes says which file and what helps, keeps the old file and leaves nothing else."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli_prune import PRUNE, TUNED
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import cli
from eigendamage_ext.runs.events import Events
from eigendamage_ext.training import Checkpoint

X, Y = torch.randn(8, 3), torch.arange(8) % 4
LOADER = [(X, Y)]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))


def factors() -> ed.Factors:
    return ed.estimate_factors(network(), LOADER, progress=False)


def result():
    return ed.prune(network(), LOADER, target={"flops": 0.8}, prune_head=True, progress=False)


def rounds(path: Path) -> None:
    pruner = ed.Pruner(
        network(), LOADER, target={"flops": 0.8}, steps=1, prune_head=True, checkpoint=path, progress=False
    )
    next(iter(pruner))


def tune(path: Path) -> None:
    ed.finetune(network(), LOADER, epochs=1, checkpoint=Checkpoint(path), progress=False)


WRITERS: dict[str, Callable[[Path], object]] = {
    "Factors.save": lambda path: factors().save(path),
    "save": lambda path: ed.save(network().eval(), path),
    "PruneResult.save": lambda path: result().save(path),
    "PruneResult.report": lambda path: result().report(path),
    "Pruner": rounds,
    "Checkpoint": tune,
}
KEEPS = [name for name in WRITERS if name not in ("Pruner", "Checkpoint")]  # the others go on from the file


@pytest.fixture
def full(monkeypatch):
    """A disk that is full from the first byte on."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_with_what_helps_and_leaves_nothing(writer, full, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match=rf"{path}.*No space left.*free some space") as raised:
        WRITERS[writer](path)
    assert raised.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", KEEPS)
def test_a_full_disk_leaves_the_old_file(writer, full, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="a file that was there is as it was"):
        WRITERS[writer](path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_is_not_there_is_to_be_made(writer, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"existing folder, got .*; create {tmp_path / 'none'}"):
        WRITERS[writer](tmp_path / "none" / "file")


def test_a_run_that_found_the_disk_full_goes_on_once_it_is_not(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = [*PRUNE, *TUNED, "-o", str(out), "--quiet"]
    real = os.replace

    def replace(source: str, target: str) -> None:
        if Path(target).name == "net.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert cli.main(command) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(out) in line and "No space left" in line and "free some space" in line
    assert not list(out.rglob("*.tmp")) and not (out / "net.safetensors").exists()
    monkeypatch.undo()
    assert cli.main(command) == 0 and (out / "net.safetensors").exists()


def test_a_full_disk_is_named_where_a_run_tells_what_happens():
    with pytest.raises(OSError, match=r"events: .*'/dev/full' \(No space left.*free some space"):
        Events(Path("/dev/full")).add("begun")


def test_an_event_that_does_not_fit_leaves_the_others_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    Events(path).add("begun")
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        with pytest.raises(OSError, match=r"events: .*(No space left|File too large)"):
            Events(path).add("ended")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
