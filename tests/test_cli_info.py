"""`info`: what it prints is what is there."""

import importlib.metadata
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eigendamage_ext import cli, ops
from eigendamage_ext.cli import info

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def page(capsys):
    assert cli.main(["info"]) == 0
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_json_holds_versions_and_kernels(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__ and found["kernels"] == ops.build_info()
    assert found["versions"]["eigendamage-ext"] == ops.build_info()["version"]
    assert found["cuda"]["torch"] == torch.version.cuda


def test_the_page_says_the_same(capsys):
    lines = page(capsys)
    assert lines["torch"] == torch.__version__ and lines["kernels"].startswith(ops.build_info()["simd"])
    assert f", {torch.get_num_threads()} threads" in lines["processor"]


def test_extras_are_those_of_the_project():
    wanted = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in info.FOR_DEVELOPERS}
    found = {extra: [one["needs"] for one in needed] for extra, needed in info.facts()["extras"].items()}
    assert found == wanted and "channels" in wanted


def test_extras_of_an_installed_package(monkeypatch):
    lines = ["torch>=2.11", 'torch_pruning>=1.6; extra == "channels"', "a[b]<2 ; extra=='demo'"]
    monkeypatch.setattr(info.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(info.Path, "is_file", lambda path: False)
    assert info.extras() == {"channels": ["torch_pruning>=1.6"], "demo": ["a[b]<2"]}


def test_what_is_missing_is_told_with_the_way_to_get_it(capsys, monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "pillow":
            raise importlib.metadata.PackageNotFoundError
        return "1.2.3" if name == "scikit-learn" else installed(name)

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    assert page(capsys)["[demo]"] == "scikit-learn 1.2.3; missing: pip install 'pillow'"


@pytest.mark.parametrize("capability", [(9, 0), (8, 6)])
def test_gpus_are_named(capability, capsys, monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA X", major=capability[0], minor=capability[1], total_memory=80 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert cli.main(["info"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("GPU 0"))
    assert (
        line.split("  ")[-1].strip()
        == f"NVIDIA X, compute capability {'.'.join(map(str, capability))}, 80 GiB"
    )


def test_a_forced_instruction_set_is_told(capsys, monkeypatch):
    monkeypatch.setenv("EIGENDAMAGE_SIMD", "v3")
    assert "forced by EIGENDAMAGE_SIMD" in page(capsys)["kernels"]
