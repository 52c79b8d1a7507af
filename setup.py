"""Compile eigendamage_ext._C from csrc; everything else about the package is in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "eigendamage_ext compiles against your torch, which is missing or hidden by pip's build isolation: "
        "run `pip install torch setuptools ninja`, then `pip install --no-build-isolation .`"
    )

GIB_PER_COMPILE = 2  # what a file that includes ATen takes
# -fopenmp is not linked: at::parallel_for, a template, is parallel only with it, and torch has the runtime.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def parallel_compiles() -> int:
    """One for each core, fewer where free memory is short."""
    cores, meminfo = os.cpu_count() or 1, Path("/proc/meminfo")
    if not meminfo.exists():
        return cores
    free_kib = int(re.search(r"MemAvailable: +(\d+)", meminfo.read_text())[1])
    return max(1, min(cores, free_kib // (GIB_PER_COMPILE << 20)))


def find_nvcc() -> tuple[str, list[str]] | None:
    """nvcc and its library folders; None for no CUDA, as EIGENDAMAGE_CUDA = 0, 1 or auto says."""
    wanted = os.environ.get("EIGENDAMAGE_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"EIGENDAMAGE_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0" or (wanted == "auto" and torch.version.cuda is None):
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc:
        probe = [nvcc, "--verbose", "--preprocess", "--x=cu", os.devnull, "--output-file", os.devnull]
        found = subprocess.run(probe, capture_output=True, text=True)
        if found.returncode == 0:  # it has cuda_runtime.h
            return nvcc, re.findall('"-L([^"]+)(?<!/stubs)"', found.stderr)
    if wanted == "1":
        sys.exit("EIGENDAMAGE_CUDA=1 needs nvcc with its headers: put nvcc on PATH, or set CUDA_HOME")
    return None


def architectures() -> list[str]:
    """nvcc's flags for the GPUs to compile for, as EIGENDAMAGE_CUDA_ARCHS names them: "80 90a" unless set.

    Only the code for sm_90a uses the matrix units of Hopper; "90" means it too.
    """
    wanted = os.environ.get("EIGENDAMAGE_CUDA_ARCHS", "80 90a").split()
    if not wanted or not all(re.fullmatch(r"\d+[af]?", arch) for arch in wanted):
        sys.exit(f"EIGENDAMAGE_CUDA_ARCHS must list architectures as in '80 90a', got {' '.join(wanted)!r}")
    wanted = ["90a" if arch == "90" else arch for arch in wanted]
    flags = [f"-gencode=arch=compute_{arch},code=[compute_{arch},sm_{arch}]" for arch in wanted]
    return flags + ["-DEIGENDAMAGE_SM90A"] * ("90a" in wanted)


def compile_cuda(nvcc: str, sources: list[str], folder: Path) -> list[str]:
    """Object files of the sources, of which ninja compiles what is out of date."""

    def escaped(path: Path | str) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    command = shlex.join([nvcc, *NVCC_FLAGS]).replace("$", "$$")
    rules = [
        f"builddir = {escaped(folder)}",
        "rule nvcc",
        f"  command = {command} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    objects = {source: str(folder / f"{source}.o") for source in sources}
    rules += [f"build {escaped(target)}: nvcc {escaped(source)}" for source, target in objects.items()]
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "build.ninja"
    plan.write_text("\n".join([*rules, ""]))
    subprocess.run(["ninja", "--quiet", "-f", str(plan), "-j", os.environ["MAX_JOBS"]], check=True)
    return list(objects.values())


try:
    import ninja

    os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ["PATH"]  # torch looks for it there alone
except ImportError:
    pass
os.environ.setdefault("MAX_JOBS", str(parallel_compiles()))
NVCC_FLAGS += architectures()
nvcc, cuda_library_dirs = find_nvcc() or (None, [])
cuda_sources = sorted(glob("csrc/cuda/**/*.cu", recursive=True)) if nvcc else []
if nvcc and not cuda_sources:
    print("csrc/cuda has no .cu file to compile: building without CUDA")


class BuildKernels(BuildExtension):
    """Runs nvcc itself: torch's own support needs a CUDA build of torch, the kernels do not."""

    def build_extension(self, ext):
        if cuda_sources:
            ext.extra_objects += compile_cuda(nvcc, cuda_sources, Path(self.build_temp, "cuda"))
        super().build_extension(ext)


setup(
    ext_modules=[
        CppExtension(
            "eigendamage_ext._C",
            sorted(
                path
                for folder in ("lag_form", "cpu", "cpu/eigh", "bindings")
                for path in glob(f"csrc/{folder}/*.cpp")
            )
            + ([] if cuda_sources else ["csrc/cuda/unavailable.cpp"]),
            extra_compile_args=CXX_FLAGS,
            libraries=["cudart"] if cuda_sources else [],
            library_dirs=cuda_library_dirs if cuda_sources else [],
            runtime_library_dirs=cuda_library_dirs if cuda_sources else [],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"build_ext": {"force": True}},  # what is out of date is for ninja to say
)
