"""Build the CUDA extension with every warning an error, import it, and report what its kernels take of a GPU.

Registers in local memory (spills) are an error: they cost what the kernel's tiles were chosen to save.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path
from typing import NamedTuple

PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
IMPORT = """
import sys, torch
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("eigendamage_ext._C", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
print("imported:", module.build_info())
sys.exit(not module.build_info()["cuda"])
"""


class Kernel(NamedTuple):
    """One kernel, compiled for one architecture."""

    name: str
    arch: str
    registers: int
    spilled: int  # bytes stored and loaded


def kernels(log: str) -> list[Kernel]:
    """What ptxas has said, by name; C++ names where c++filt is installed."""
    found = [
        Kernel(m["name"], m["arch"], int(m["registers"]), int(m["stores"]) + int(m["loads"]))
        for m in PTXAS.finditer(log)
    ]
    if shutil.which("c++filt"):
        names = "\n".join(kernel.name for kernel in found)
        command = ["c++filt", "--no-params"]
        plain = subprocess.run(command, input=names, capture_output=True, text=True, check=True).stdout
        found = [k._replace(name=short(name)) for k, name in zip(found, plain.splitlines(), strict=True)]
    return sorted(found)


def short(name: str) -> str:
    """A demangled name without namespaces and what its result is."""
    return re.sub(r"(\(anonymous namespace\)|\w+)::", "", name).removeprefix("void ")


def table(found: list[Kernel]) -> str:
    """One line for each kernel, with registers (and bytes spilled) for each architecture."""
    archs = sorted({kernel.arch for kernel in found})
    width = max(len(kernel.name) for kernel in found)
    cells = {(k.name, k.arch): f"{k.registers}" + (f" +{k.spilled} B" if k.spilled else "") for k in found}
    lines = [f"{'registers of':{width}} " + " ".join(f"{arch:>11}" for arch in archs)]
    lines += [
        f"{name:{width}} " + " ".join(f"{cells.get((name, arch), ''):>11}" for arch in archs)
        for name in dict.fromkeys(kernel.name for kernel in found)
    ]
    return "\n".join(lines)


def main() -> str | None:
    """Return what is wrong."""
    for folder in glob("build/temp*/cuda"):
        shutil.rmtree(folder)  # what is up to date reports nothing
    with tempfile.TemporaryDirectory() as folder:
        flags = {"EIGENDAMAGE_CUDA": "1", "NVCC_APPEND_FLAGS": "-Werror all-warnings -Xptxas -v"}
        build = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if build.returncode != 0:
            return build.stdout
        (extension,) = Path(folder, "eigendamage_ext").glob("_C*.so")
        if subprocess.run([sys.executable, "-c", IMPORT, str(extension)]).returncode != 0:
            return "the extension does not import, or says it was built without CUDA"
    found = kernels(build.stdout)
    if not found:
        return f"ptxas has reported no kernel:\n{build.stdout}"
    print(table(found))
    spilling = [f"{kernel.name} for {kernel.arch}" for kernel in found if kernel.spilled]
    return "these kernels spill registers: " + ", ".join(spilling) if spilling else None


sys.exit(main())
