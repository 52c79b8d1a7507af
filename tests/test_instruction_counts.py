"""Kernels run no more instructions than they did: a guard of speed that no load on the machine disturbs.

valgrind counts one call of each on the objects that `make build` compiled, at x86-64-v3 for want of AVX-512.

    python tests/test_instruction_counts.py      records anew, after a change that is worth its price
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = REPOSITORY / "tests" / "cpp" / "counts" / "counted.cpp"
RECORD = PROGRAM.with_name("record.json")
COMPILER = os.environ.get("CXX", "c++")
KERNELS = ("channel_covariance", "patch_covariance", "gradient_second_moment")
# The compiler that made the record is held close to it. Another one chooses other instructions around the
# same inner loops: it is only kept from losing their vectors.
TOLERANCE, OTHER_TOLERANCE = 1.05, 1.6


def objects() -> list[Path]:
    """What `make build` compiled of the CPU kernels, for this Python."""
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    sources = sorted(
        path
        for folder in ("cpu", "cpu/eigh", "lag_form")
        for path in (REPOSITORY / "csrc" / folder).glob("*.cpp")
    )
    return [
        REPOSITORY / "build" / f"temp.{platform}" / source.relative_to(REPOSITORY).with_suffix(".o")
        for source in sources
    ]


def missing() -> str | None:
    """Why nothing can be counted here."""
    if not shutil.which("valgrind"):
        return "no valgrind"
    if not shutil.which(COMPILER):
        return f"no {COMPILER}"
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "avx2" not in cpuinfo.read_text().split():
        return "no AVX2"
    return None if all(map(Path.exists, objects())) else "no objects of `make build`"


def compiler() -> str:
    """Name and version, such as "g++ 12"."""
    text = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    name = "clang" if "clang" in text else "g++"
    major = re.search(r"(\d+)\.\d+", text)[1]
    return f"{name} {major}"


def build(folder: Path) -> Path:
    program, source = folder / "counted", REPOSITORY / "csrc"
    unavailable = source / "cuda" / "unavailable.cpp"
    command = [COMPILER, "-std=c++20", "-O1", "-fopenmp", f"-I{source}", PROGRAM, unavailable]
    subprocess.run([*command, *objects(), "-o", program], check=True)
    return program


def count(program: Path, kernel: str) -> int:
    """Instructions of one call."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=counted"]
    environment = {**os.environ, "EIGENDAMAGE_SIMD": "v3"}
    found = subprocess.run(
        [*valgrind, program, kernel], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0 and found.stdout == f"v3 {kernel}\n", found.stderr
    return int(re.search(r"Collected : (\d+)", found.stderr)[1])


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    reason = missing()
    if reason:
        pytest.skip(f"instructions cannot be counted: {reason}")
    return build(tmp_path_factory.mktemp("counts"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_more_instructions_than_recorded(program, kernel):
    record = json.loads(RECORD.read_text())
    tolerance = TOLERANCE if record["compiler"] == compiler() else OTHER_TOLERANCE
    found, recorded = count(program, kernel), record["instructions"][kernel]
    assert found <= tolerance * recorded, (
        f"{kernel} ran {found:,} instructions, {found / recorded:.2f} times the {recorded:,} on record; "
        "if they are worth it, record them by `python tests/test_instruction_counts.py`"
    )


def main() -> None:
    import tempfile

    reason = missing()
    if reason:
        sys.exit(f"instructions cannot be counted: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        counts = {kernel: count(built, kernel) for kernel in KERNELS}
    RECORD.write_text(json.dumps({"compiler": compiler(), "instructions": counts}, indent=1) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
