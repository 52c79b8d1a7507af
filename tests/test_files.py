"""Atomic files, and safetensors with a manifest: round trips, every kind of damage, nothing half written."""

import errno
import fcntl
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from eigendamage_ext import _files
from eigendamage_ext._files import ArtifactError, read_header, read_tensors, write_atomically, write_tensors

TENSORS = {
    "float32": torch.randn(3, 4),
    "float64": torch.randn(2, 3, 4, dtype=torch.float64),
    "bfloat16": torch.randn(5).bfloat16(),
    "int64": torch.tensor(7),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "transposed": torch.randn(4, 3).T,
}
MANIFEST = {"name": "é", "number": 0.1, "list": [1, None, True], "nested": {"a": "b"}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, MANIFEST, format="test")
    return path


def test_round_trip_is_bit_equal(path):
    tensors, manifest = read_tensors(path, format="test")
    assert manifest == MANIFEST
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_equal_content_makes_equal_files(path, tmp_path):
    for _ in range(8):
        write_tensors(tmp_path / "again", dict(reversed(TENSORS.items())), MANIFEST, format="test")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_tied_tensors_are_written_by_every_name(tmp_path):
    tied = torch.randn(3)
    write_tensors(tmp_path / "f", {"a": tied, "b": tied, "c": tied[1:]}, {}, format="test")
    tensors, _ = read_tensors(tmp_path / "f", format="test")
    assert (
        torch.equal(tensors["a"], tied)
        and torch.equal(tensors["b"], tied)
        and torch.equal(tensors["c"], tied[1:])
    )


def test_the_file_stays_when_its_tensors_change(path):
    tensors, _ = read_tensors(path, format="test")
    tensors["float32"].zero_()
    assert torch.equal(read_tensors(path, format="test")[0]["float32"], TENSORS["float32"])


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -200, -1])
def test_truncation_is_an_artifact_error(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"file\.safetensors.*truncated or corrupted"):
        read_tensors(path, format="test")


def test_every_flipped_byte_is_found(path):
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"file\.safetensors"):
            read_tensors(path, format="test")


def test_appended_bytes_are_found(path):
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=r"file\.safetensors.*corrupted"):
        read_tensors(path, format="test")


def test_a_missing_file_and_a_folder_are_artifact_errors(tmp_path):
    with pytest.raises(ArtifactError, match=r"absent.*does not exist"):
        read_tensors(tmp_path / "absent", format="test")
    with pytest.raises(ArtifactError, match=tmp_path.name):
        read_tensors(tmp_path, format="test")


def test_another_format_is_named(path):
    with pytest.raises(ArtifactError, match="must have the format 'other', got format 'test'"):
        read_tensors(path, format="other")
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match="got a safetensors file without a format"):
        read_tensors(path, format="test")


def test_a_newer_version_asks_for_a_newer_package(path, monkeypatch):
    monkeypatch.setattr(_files, "FORMAT_VERSION", 2)
    write_tensors(path, TENSORS, MANIFEST, format="test")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="up to 1, got 2; install a newer eigendamage-ext"):
        read_tensors(path, format="test")


@pytest.mark.parametrize("manifest", ["", "{", "[1]", None])
def test_a_manifest_that_is_not_an_object_is_refused(path, manifest):
    metadata = {"format": "test", "format_version": "1", "digest": _files._digest({}, manifest or "")}
    if manifest is not None:
        metadata["manifest"] = manifest
    safetensors.torch.save_file({}, path, metadata)
    with pytest.raises(ArtifactError, match=r"file\.safetensors.*manifest"):
        read_tensors(path, format="test")


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "f").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtifactError):
        read_tensors(tmp_path / "f", format="test")
    assert not (tmp_path / "exploded").exists()


def test_a_manifest_json_cannot_hold_leaves_the_old_file(path):
    before = path.read_bytes()
    for manifest in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_tensors(path, TENSORS, manifest, format="test")
    assert path.read_bytes() == before


FULL = "No space left on device); free some space or choose another folder; a file that was there is as it"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), FULL),
        (OSError(errno.EIO, "broken"), "broken"),
        (OSError("strange"), "strange"),
        (KeyboardInterrupt("stop"), "stop"),
    ],
    ids=repr,
)
def test_an_interrupted_write_leaves_the_old_file_alone(path, error, message):
    before = path.read_bytes()

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error), match=re.escape(message)) as caught:
        write_atomically(path, write, caller="report")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if message is FULL:
        assert str(caught.value).startswith(f"report: path must be a place for a file, got {str(path)!r} (No")
        assert caught.value.errno == errno.ENOSPC


def test_places_that_no_file_can_have_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must lie in an existing folder.*create"):
        write_atomically(tmp_path / "no" / "file", lambda file: None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder' \(Is a directory\); choose another name"):
        write_atomically(tmp_path / "folder", lambda file: None)
    with pytest.raises(OSError, match=r"\(File name too long\); choose a shorter name"):
        write_atomically(tmp_path / ("a" * 250), lambda file: None)
    (tmp_path / "folder").chmod(0o500)
    for folder in (
        [tmp_path / "folder"] if os.geteuid() else [Path("/sys")]
    ):  # which even root may not write to
        if folder.exists():
            with pytest.raises(OSError, match=r"file' \(.*\); choose a folder that you may write to; a file"):
                write_atomically(folder / "file", lambda file: None)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]


KILLED = """
import os, resource, signal, sys
from eigendamage_ext._files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_atomically(sys.argv[1], lambda file: file.write(bytes(2000)))
except OSError as error:
    print(error)
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write)
"""


def test_what_a_killed_process_leaves_goes_with_the_next_write(path):
    before = path.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL and killed.stderr == ""
    assert "(File too large); allow larger files (ulimit -f)" in killed.stdout
    assert path.read_bytes() == before
    (left,) = set(path.parent.iterdir()) - {path}
    assert left.read_bytes() == b"half"
    write_atomically(path, lambda file: file.write(b"whole"))
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == b"whole"


def test_files_of_others_stay(tmp_path):
    hexadecimal = "0123456789abcdef"
    others = {
        f".net.x.{hexadecimal}.tmp",
        f".net.{hexadecimal}",
        f".net.{hexadecimal[1:]}.tmp",
        ".net.old.tmp",
    }
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f".net.{hexadecimal[::-1]}.tmp").symlink_to(f".net.{hexadecimal}")
    others.add(f".net.{hexadecimal[::-1]}.tmp")
    (tmp_path / f".net.{hexadecimal}.tmp").touch()

    def write(file):
        file.write(b"first")
        write_atomically(tmp_path / "net", lambda inner: inner.write(b"second"))
        assert (tmp_path / "net").read_bytes() == b"second"

    write_atomically(tmp_path / "net", write)
    assert (tmp_path / "net").read_bytes() == b"first"
    assert {p.name for p in tmp_path.iterdir()} == {*others, "net"}


@pytest.mark.parametrize("taken", ["locked", "removed"])
def test_a_new_file_that_was_taken_for_abandoned_is_made_anew(tmp_path, monkeypatch, taken):
    lock, names = fcntl.flock, []

    def flock(file, how):
        names.append(file.name)
        if len(names) == 1:
            os.unlink(file.name)
            if taken == "locked":
                raise BlockingIOError
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_atomically(tmp_path / "net", lambda file: file.write(b"whole"))
    assert len(set(names)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["net"] and (tmp_path / "net").read_bytes() == b"whole"


def test_files_are_written_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".net.0123456789abcdef.tmp"
    left.touch()
    write_atomically(tmp_path / "net", lambda file: file.write(b"whole"))
    assert set(tmp_path.iterdir()) == {left, tmp_path / "net"}


def test_the_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def replaced(old, new):
        steps.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(path, lambda file: file.write(b"whole"))
    assert steps == [5, "name", "folder"]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", lambda file: file.write(b"content"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"content"


def test_the_manifest_is_readable_without_this_package(path):
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["manifest"]) == MANIFEST


def test_a_header_tells_names_dtypes_and_shapes(path):
    header = read_header(path, {"test": 1})
    assert (header.format, header.version, header.manifest) == ("test", 1, MANIFEST)
    assert header.tensors["bfloat16"] == ("BF16", (5,)) and header.tensors["int64"] == ("I64", ())
    assert {name: shape for name, (_, shape) in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }


def test_a_header_is_read_without_the_tensors(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(byte ^ 255 for byte in content[-8:]))
    assert read_header(path, {"test": 1}).manifest == MANIFEST  # which a checksum of the tensors would refuse
    with pytest.raises(ArtifactError, match="checksum"):
        read_tensors(path, format="test")


def test_the_header_of_another_file_is_its_metadata(path):
    safetensors.torch.save_file({"a": torch.zeros(2, 3)}, path, {"format": "pt", "manifest": "{"})
    header = read_header(path, {"test": 1})
    assert (header.format, header.version) == (None, 0)
    assert header.manifest == {"format": "pt", "manifest": "{"} and header.tensors == {"a": ("F32", (2, 3))}


def test_a_header_of_a_newer_version_is_refused(path):
    write_tensors(path, {}, {}, format="test", version=3)
    assert read_header(path, {"test": 3}).version == 3
    with pytest.raises(ArtifactError, match="version up to 2, got 3"):
        read_header(path, {"test": 2})
