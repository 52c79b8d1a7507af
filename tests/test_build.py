"""What `make` and setup.py say and do where something is missing."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Machine:
    """A copy of .ci/python and a python3 in which modules can be replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in (".ci", "bin", "modules", "wheels"):
            (path / name).mkdir()
        shutil.copy(ROOT / ".ci/python", path / ".ci")
        python3 = path / "bin/python3"
        python3.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python3.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "MAKE", "CXX"))}
        self.environment = kept | {
            "PATH": f"{path}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(path / "modules"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(path / "wheels"),
        }

    def module(self, name: str, text: str) -> None:
        (self.path / "modules" / f"{name}.py").write_text(text)

    def wheel(self, name: str) -> None:
        folder = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(self.path / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as file:
            file.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            file.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{folder}/RECORD", "")

    def python(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(self.path / ".ci/python"), "build"]
        return subprocess.run(command, env=self.environment | environment, capture_output=True, text=True)

    def complaint(self, **environment: str) -> str:
        result = self.python(**environment)
        assert result.returncode != 0
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert not (self.path / ".venv").exists()
        return result.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


MISSING = "raise ImportError"


def test_python3_is_used_as_it_is_where_it_has_everything(machine: Machine) -> None:
    assert machine.python().stdout == f"{machine.path}/bin/python3\n"


def test_given_python_is_used(machine: Machine) -> None:
    assert machine.python(PYTHON=sys.executable).stdout == f"{sys.executable}\n"


@pytest.mark.parametrize(
    ("torch", "lacking"), [(MISSING, "torch"), ("__version__ = '2.10.1+cu'", "torch>=2.11")]
)
def test_given_python_that_lacks_a_module(machine: Machine, torch: str, lacking: str) -> None:
    machine.module("torch", torch)
    assert f"needs {lacking} in PYTHON=python3: install it there" in machine.complaint(PYTHON="python3")


def test_too_old_a_python(machine: Machine) -> None:
    version = (
        "import platform, sys\nsys.version_info = (3, 10, 2)\nplatform.python_version = lambda: '3.10.2'"
    )
    machine.module("sitecustomize", version)
    assert "needs Python 3.11 or newer, and here is 3.10.2: install it (Debian: " in machine.complaint()


def test_no_python(machine: Machine) -> None:
    assert "needs Python 3.11 or newer, and here is no pythonX: install it" in machine.complaint(
        PYTHON="pythonX"
    )


def test_no_compiler(machine: Machine) -> None:
    complaint = machine.complaint(CXX="c++X")
    assert "needs a C++20 compiler, which c++X is not: install one (Debian: apt install g++;" in complaint


def test_no_python_headers(machine: Machine) -> None:
    machine.module("sitecustomize", "import sysconfig\nsysconfig.get_path = lambda name: '/nowhere'")
    complaint = machine.complaint()
    assert "needs Python.h of python3" in complaint
    assert "apt install python3-dev; Fedora: dnf install python3-devel" in complaint


def test_no_venv(machine: Machine) -> None:
    machine.module("torch", MISSING)
    machine.module("ensurepip", MISSING)
    assert (
        "needs Python's venv module to make .venv: install it (Debian: apt install python3-venv"
        in machine.complaint()
    )


def test_venv_follows_the_requirements_and_heals(machine: Machine) -> None:
    machine.module("torch", MISSING)
    (machine.path / "requirements.txt").write_text("torch==1.0\nother==1.0\n")
    venv = machine.path / ".venv"
    venv.mkdir()
    (venv / "ready").write_text("torch==0.9\n")
    (venv / "old").touch()

    machine.wheel("torch")
    assert machine.python().returncode != 0  # cut short: there is no wheel of other
    assert not (venv / "old").exists()
    assert (venv / "bin/python").exists()

    machine.wheel("other")
    assert machine.python().stdout == f"{venv}/bin/python\n"
    installed = {path.name for path in next(venv.glob("lib/*/site-packages")).iterdir()}
    assert {"torch-1.0.dist-info", "other-1.0.dist-info"} <= installed

    (venv / "kept").touch()
    assert machine.python().stdout == f"{venv}/bin/python\n"
    assert (venv / "kept").exists()


def setup_py(**environment: str) -> str:
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_setup_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(MISSING)
    complaint = setup_py(PYTHONPATH=str(tmp_path))
    assert "run `pip install torch setuptools ninja`, then `pip install --no-build-isolation .`" in complaint


def test_setup_refuses_cuda_it_cannot_build(tmp_path: Path) -> None:
    assert setup_py(EIGENDAMAGE_CUDA="yes") == "EIGENDAMAGE_CUDA must be 0, 1 or auto, got 'yes'"
    assert "needs nvcc with its headers" in setup_py(EIGENDAMAGE_CUDA="1", CUDA_HOME=str(tmp_path))
    complaint = "EIGENDAMAGE_CUDA_ARCHS must list architectures as in '80 90a', got 'sm_90'"
    assert setup_py(EIGENDAMAGE_CUDA_ARCHS="sm_90") == complaint


def test_requirements_are_exact() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)] == []


def test_make_alone_lists_every_target() -> None:
    targets = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in listed.splitlines()] == targets
