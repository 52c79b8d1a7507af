"""With what a run was made: versions, machine, and the commit of the folder it was started in."""

import os
import platform
import subprocess
from typing import Any

import torch

from eigendamage_ext import __version__, _devices, ops


def environment(device: str) -> dict[str, Any]:
    """What may make numbers differ from run to run, as JSON."""
    return {
        "eigendamage_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _devices.name(device),
        "kernels": ops.build_info().get("simd", "unknown"),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the current folder, with "+" where files differ from it; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
    ).stdout
