"""``eigendamage info``: what is installed and what the machine is, for a report of a fault."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eigendamage_ext.cli.parsing import Commands, add_command

DISTRIBUTION = "eigendamage-ext"
FOR_DEVELOPERS = {"test", "bench", "lint", "docs"}  # extras


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "info",
        run,
        help="print versions, kernels, devices and extras, for a report of a fault",
        description="Prints what is installed, which kernels run, what they run on, and how to get what is\n"
        "missing. Put it into a report of a fault.",
        examples="  eigendamage info\n  eigendamage info --json",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the facts."""
    found = facts()
    print(json.dumps(found, indent=2) if options.json else _page(found))
    return 0


def facts() -> dict[str, Any]:
    """Versions, kernels, machine, GPUs and extras, as JSON."""
    import torch

    from eigendamage_ext import _devices, ops

    names = ("torch", "numpy", "safetensors", "rich")
    count = torch.cuda.device_count() if torch.version.cuda else 0
    return {
        "versions": {DISTRIBUTION: ops.build_info()["version"], "python": platform.python_version()}
        | {name: version(name) for name in names},
        "kernels": ops.build_info(),
        "machine": {
            "system": platform.platform(),
            "processor": _devices.name("cpu"),
            "cores": os.cpu_count(),
            "simd_forced": os.environ.get("EIGENDAMAGE_SIMD"),
        },
        "cuda": {"torch": torch.version.cuda, "devices": [_gpu(index) for index in range(count)]},
        "extras": {
            extra: [{"needs": line, "found": version(_name(line))} for line in lines]
            for extra, lines in extras().items()
            if extra not in FOR_DEVELOPERS
        },
    }


def version(distribution: str) -> str | None:
    """The version that is installed; None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """What each extra of this package needs, as pip takes it: from its source, else from its metadata."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        optional: dict[str, list[str]] = tomllib.loads(project.read_text())["project"][
            "optional-dependencies"
        ]
        return optional
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        if extra := re.search(r"""extra\s*==\s*['"]([\w-]+)""", marker):
            found.setdefault(extra[1], []).append(requirement.strip())
    return found


def _name(requirement: str) -> str:
    """The distribution that is required."""
    match = re.match(r"[\w.-]+", requirement)
    return match[0] if match else requirement


def _gpu(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "bytes": found.total_memory,
    }


def _page(found: Mapping[str, Any]) -> str:
    return "\n".join(f"{label:16}{text}" for label, text in _lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kernels, machine, cuda = found["kernels"], found["machine"], found["cuda"]
    for name, number in found["versions"].items():
        yield name, number or "missing"
    yield "system", machine["system"]
    yield "processor", f"{machine['processor']}, {machine['cores']} cores, {kernels['threads']} threads"
    forced = ", forced by EIGENDAMAGE_SIMD" if machine["simd_forced"] else ""
    yield "kernels", f"{kernels['simd']}{forced}, compiled against torch {kernels['torch_compiled_against']}"
    if kernels["cuda"]:
        yield "CUDA kernels", f"for {', '.join(kernels['cuda_architectures'])}"
    else:
        yield "CUDA kernels", "none; EIGENDAMAGE_CUDA=1 make build compiles them where nvcc is installed"
    if not cuda["torch"]:
        yield "GPUs", "none, as this torch is for the CPU alone"
    elif not cuda["devices"]:
        yield "GPUs", f"none that torch finds (CUDA {cuda['torch']})"
    for index, gpu in enumerate(cuda["devices"]):
        capability, memory = gpu["compute_capability"], gpu["bytes"] / 2**30
        yield f"GPU {index}", f"{gpu['name']}, compute capability {capability}, {memory:.0f} GiB"
    for extra, needed in found["extras"].items():
        yield f"[{extra}]", _extra(needed)


def _extra(needed: Sequence[Mapping[str, str | None]]) -> str:
    """What of an extra is there, and how to get the rest."""
    there = [f"{_name(str(one['needs']))} {one['found']}" for one in needed if one["found"]]
    missing = [f"'{one['needs']}'" for one in needed if not one["found"]]
    parts = [", ".join(there), f"missing: pip install {' '.join(missing)}" if missing else ""]
    return "; ".join(filter(None, parts))
