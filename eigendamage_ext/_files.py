"""Files that are whole or absent: atomic writes, and safetensors with a JSON manifest.

A file of tensors is one safetensors file. Its metadata holds ``format`` (what the file is),
``format_version``, ``manifest`` (JSON) and ``digest`` (SHA-256 of manifest and tensors), so a flipped bit
is found as surely as a missing end. Reading runs no code from the file.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT_VERSION = 1
MANIFEST_LIMIT = 2**24  # characters; it is small, and JSON takes many times its size in memory


class ArtifactError(ValueError):
    """A file that cannot be read: missing, truncated, corrupted, of another format or of a newer version."""


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], None], *, caller: str = "save"
) -> None:
    """Writes a file so that `path` holds either its old content or the complete new one.

    Args:
        path: Where the file goes; a symbolic link is followed.
        write: Called with an open binary file beside `path`, which replaces `path` once `write` has returned.
        caller: Whom errors name.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The disk is full, the folder may not be written to, or the like; what to do.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{caller}: path must lie in an existing folder, got {str(path)!r}; create {target.parent}"
        )
    with explained(path, caller):
        _remove_abandoned(target)
        with _beside(target) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        _keep_name(target.parent)


REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "allow larger files (ulimit -f) or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EISDIR: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def explained(path: str | os.PathLike[str], caller: str) -> Iterator[None]:
    """Says of which file an error is and what helps; by then nothing has changed."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        told = type(error)(
            f"{caller}: path must be a place for a file, got {str(path)!r} ({os.strerror(error.errno)}); "
            f"{REMEDIES[error.errno]}; a file that was there is as it was"
        )
        told.errno = error.errno
        raise told from error


@contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of another, open and locked; it goes with the block unless it is renamed."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "x+b") as file:
                if _locked(file) and os.fstat(file.fileno()).st_nlink:
                    yield file
                    return
        finally:
            temporary.unlink(missing_ok=True)


def _locked(file: BinaryIO) -> bool:
    """Locks a file until it is closed, or its process gone; False: another has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: nobody can lock its files, nor remove them as abandoned
    return True


def _remove_abandoned(target: Path) -> None:
    """Removes what processes that were killed had begun to write for this target: nobody has it locked."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
    for entry in os.scandir(target.parent):
        if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(OSError), open(entry.path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)


def _keep_name(folder: Path) -> None:
    """Has a folder written to disk, so that a new name in it outlives a power cut."""
    with suppress(OSError):  # not every file system can; the file itself is whole
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    format: str,
    version: int | None = None,
) -> None:
    """Writes tensors and a JSON manifest as one safetensors file, atomically.

    Args:
        path: Where the file goes.
        tensors: Name to tensor, of any shape, device and strides; tensors may share memory.
        manifest: Anything `json.dumps` accepts, without NaN and infinity.
        format: What the file is; `read_tensors` insists on it.
        version: Of that format; None: `FORMAT_VERSION`.

    Raises:
        ValueError: The manifest is too large to be read again.
    """
    # A copy of each, because safetensors refuses tensors that overlap (tied weights) or are not contiguous.
    plain = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()
    }
    text = json.dumps(manifest, allow_nan=False, sort_keys=True)
    if len(text) > MANIFEST_LIMIT:
        raise ValueError(
            f"save: manifest must have at most {MANIFEST_LIMIT:,} characters, got {len(text):,}; save less"
        )
    metadata = {
        "format": format,
        "format_version": str(version or FORMAT_VERSION),
        "manifest": text,
        "digest": _digest(plain, text),
    }
    content = safetensors.torch.save(plain, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    # Its own order of the metadata changes from call to call; equal content shall make equal files.
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        file.write(memoryview(content)[start:])

    write_atomically(path, write)


def read_tensors(
    path: str | os.PathLike[str], *, format: str, version: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Args:
        path: The file.
        format: The format the file must have.
        version: The newest version of it that is understood; None: `FORMAT_VERSION`.

    Returns:
        The tensors, on the CPU, and the manifest.

    Raises:
        ArtifactError: The file is missing, truncated, corrupted, of another format or of a newer version.
    """
    where = str(path)
    with _opened(where) as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name).clone() for name in names}
    found = metadata.get("format")
    if found != format:
        got = "a safetensors file without a format" if found is None else f"format {found!r}"
        raise ArtifactError(
            f"load: {where!r} must have the format {format!r}, got {got}; pass the right file"
        )
    _checked_version(where, metadata, version or FORMAT_VERSION)
    text = _manifest_text(where, metadata)
    if metadata.get("digest") != _digest(tensors, text):
        raise ArtifactError(f"load: {where!r} must match its checksum, got corrupted content; save it again")
    return tensors, _parsed(where, text)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its tensors; whether the tensors match its checksum is not known.

    Attributes:
        format: One of those that were asked for; None: it is another's file.
        version: Of that format; 0 of another's file.
        manifest: Not trusted; of another's file its metadata.
        tensors: The dtype as safetensors names it ("F32") and the shape of each tensor, by name.
    """

    format: str | None
    version: int
    manifest: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: str | os.PathLike[str], versions: Mapping[str, int]) -> Header:
    """Reads all but the tensors of a safetensors file.

    Args:
        path: The file.
        versions: The formats that are looked for, and the newest version of each that is understood.

    Raises:
        ArtifactError: The file is missing, truncated or of a newer version, or its manifest is no object.
    """
    where = str(path)
    with _opened(where) as file:
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    found = metadata.get("format", "")
    if found not in versions:
        return Header(None, 0, dict(metadata), tensors)
    version = _checked_version(where, metadata, versions[found])
    return Header(found, version, _parsed(where, _manifest_text(where, metadata)), tensors)


@contextmanager
def _opened(where: str) -> Iterator[Any]:
    """A safetensors file, open to be read."""
    try:
        with safetensors.safe_open(where, framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        raise ArtifactError(f"load: path must name a file, got {where!r}, which does not exist") from None
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"load: {where!r} must be a complete safetensors file, got one that is truncated or corrupted "
            f"({error}); save it again"
        ) from error


def _checked_version(where: str, metadata: Mapping[str, str], newest: int) -> int:
    """The format version that a file states."""
    stated = metadata.get("format_version", "")
    if not (stated.isascii() and stated.isdecimal() and len(stated) < 10):
        raise ArtifactError(
            f"load: {where!r} must state its format version, got {stated[:20]!r}; save it again"
        )
    if int(stated) > newest:
        raise ArtifactError(
            f"load: {where!r} must have a format version up to {newest}, got {stated}; "
            "install a newer eigendamage-ext"
        )
    return int(stated)


def _manifest_text(where: str, metadata: Mapping[str, str]) -> str:
    text = metadata.get("manifest", "")
    if len(text) > MANIFEST_LIMIT:
        raise ArtifactError(
            f"load: {where!r} must have a manifest of at most {MANIFEST_LIMIT:,} characters, got "
            f"{len(text):,}; save it again"
        )
    return text


def _parsed(where: str, text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise ArtifactError(
            f"load: {where!r} must hold a JSON object as its manifest, got {text[:60]!r}; save it again"
        )
    return manifest


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's state, in hexadecimal: the same for the same names, shapes, dtypes and numbers."""
    tensors = {name: t.detach().cpu() for name, t in state.items() if isinstance(t, Tensor)}
    return _digest(tensors, "")


def _digest(tensors: Mapping[str, Tensor], manifest: str) -> str:
    """SHA-256 of the manifest and of the name, dtype, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256(manifest.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
