"""The layers of the tree: what may include or import what."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "eigendamage_ext"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Each may import what stands on a line above its own, and parts of itself. Unnamed private ones: the first.
ORDER = [
    ["ops", "reference"],
    ["curvature"],
    ["pruning"],
    ["artifact"],
    ["report"],
    ["_meter"],
    ["demo", "bench", "runs"],
    ["cli"],
    ["__main__"],
]
APART = ["training", "data", "models"]  # import private modules alone
TOP = ["_meter", "report", "demo", "runs", "cli", "__main__"]  # import those, and the package itself
LAZY = Path("pruning/plan.py")  # PruneResult's methods import what saves and reports it, when they are called


def unit(module: Path) -> str:
    return module.with_suffix("").parts[0]


def level(name: str) -> int:
    places = [i for i, names in enumerate(ORDER) if name in names] or [0] * name.startswith("_")
    assert places, f"{name} is new: give it a place in ORDER"
    return places[0]


def module_of(name: list[str]) -> Path:
    """The longest part of a.b.c that is a module."""
    for end in range(len(name), 0, -1):
        path = Path(*name[:end])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate in MODULES:
                return candidate
    return Path("__init__.py")


def imports(module: Path) -> Iterator[tuple[Path, bool]]:
    """What a module imports of the package, and whether inside a function."""
    tree = ast.parse((PACKAGE / module).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    lazy = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = ["eigendamage_ext", *module.parts][: -node.level] if node.level else []
            stem = parents + (node.module.split(".") if node.module else [])
            names = [[*stem, alias.name] for alias in node.names]
        for package, *name in names:
            if package == "eigendamage_ext" and name not in (["_C"], ["__version__"]):
                yield module_of(name), node in lazy


def test_only_bindings_include_torch_and_they_no_cuda() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    for path in sources:
        unwanted = r".*cuda" if "bindings" in path.parts else r"torch/|ATen/|c10/|pybind11/"
        assert not re.findall(rf'# *include *[<"]({unwanted})', path.read_text(), re.IGNORECASE), path


@pytest.mark.parametrize("module", [m for m in MODULES if m != Path("__init__.py")], ids=str)
def test_imports_point_downward(module: Path) -> None:
    name = unit(module)
    for imported, lazy in imports(module):
        other = unit(imported)
        where = f"{module} imports {imported}"
        if name == other:
            continue
        if other in (*APART, "__init__"):
            assert name in TOP, where
        elif name in APART:
            assert level(other) == 0 and other.startswith("_"), where
        elif not (lazy and module == LAZY):
            # Modules of the first line import each other; that it is no circle is the next test.
            assert level(other) < level(name) or level(other) == level(name) == 0, where


def test_imports_have_no_circle() -> None:
    graph = {module: {other for other, lazy in imports(module) if not lazy} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_files_are_short() -> None:
    assert not [str(module) for module in MODULES if len((PACKAGE / module).read_text().splitlines()) > 450]
