"""Compile eigendamage_ext._C from csrc; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "eigendamage_ext compiles against the torch you use, which is missing or hidden by pip's build isolation: "
        "run `pip install torch setuptools ninja`, then `pip install --no-build-isolation .`"
    )

GIB_PER_COMPILE = 2  # what one file that includes ATen takes


def parallel_compiles() -> int:
    """As many as there are cores, unless free memory is short."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.cpu_count() or 1
    kib = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return max(1, min(os.cpu_count() or 1, kib // (GIB_PER_COMPILE << 20)))


def cuda_home() -> Path | None:
    """The CUDA toolkit to build with, None for a build without: EIGENDAMAGE_CUDA = 0, 1 or auto."""
    wanted = os.environ.get("EIGENDAMAGE_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"EIGENDAMAGE_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0" or (wanted == "auto" and torch.version.cuda is None):
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = Path(home, "bin/nvcc") if home else shutil.which("nvcc")
    root = Path(nvcc).resolve().parents[1] if nvcc else None
    if root and (root / "include/cuda_runtime.h").exists():
        return root
    if wanted == "1":
        sys.exit("EIGENDAMAGE_CUDA=1 needs nvcc and its headers: put nvcc on PATH or set CUDA_HOME")
    return None


def extension(cuda: Path | None) -> Extension:
    sources = glob("csrc/cpu/*.cpp") + glob("csrc/bindings/*.cpp") + ["csrc/cuda/unavailable.cpp"]
    return CppExtension(
        "eigendamage_ext._C",
        sorted(sources),
        depends=glob("csrc/**/*.h", recursive=True),
        # -fopenmp is not linked: at::parallel_for, a template, needs the flag, and torch brings the runtime.
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden"],
    )


os.environ.setdefault("MAX_JOBS", str(parallel_compiles()))
setup(ext_modules=[extension(cuda_home())], cmdclass={"build_ext": BuildExtension})
