"""What the documentation names exists; its Python runs in test_doc_examples."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from benchmarks import forms
from eigendamage_ext import cli, ops

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
METHOD = "docs/method.md"
MAKEFILE = (ROOT / "Makefile").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = sorted(ROOT.glob("eigendamage_ext/**/[a-z]*.py"))
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
KNOWN = {"ed": ed, "eigendamage_ext": ed, "ops": ops, "torch": torch, "nn": nn, "Tensor": Tensor}
CALLED = {"factors": ed.Factors, "plan": ed.Plan, "result": ed.PruneResult}  # variables of the pages


def prose(page: str) -> str:
    return FENCE.sub("", PAGES[page].read_text())


def python(page: str) -> list[str]:
    return [code for language, code in FENCE.findall(PAGES[page].read_text()) if language == "python"]


def owner(root: str) -> Any:
    """What a dotted name begins with: a module or class of the package, or None."""
    if root in KNOWN | CALLED:
        return (KNOWN | CALLED)[root]
    for path, name in MODULES.items():
        if path.stem == root or re.search(rf"^class {root}\b", path.read_text(), re.M):
            module = importlib.import_module(name)
            return module if path.stem == root else getattr(module, root)
    return None


def missing(found: Any, names: list[str]) -> str | None:
    """The first of the attributes, each of the one before, that is not there."""
    for name in names:
        if inspect.ismodule(found) and not hasattr(found, name):
            full = f"{found.__name__}.{name}"
            if hasattr(found, "__path__") and importlib.util.find_spec(full):
                importlib.import_module(full)
        if hasattr(found, name):
            found = getattr(found, name)
        elif isinstance(found, type) and re.search(rf"self\.{name}\b.*=|^    {name}: ", source(found), re.M):
            return None  # a field; it is not said what it holds
        else:
            return name
    return None


def source(kind: type) -> str:
    return "\n".join(inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith("eigen"))


def dotted(page: str) -> list[str]:
    """Names a.b.c in backticks and in the Python of a page."""
    names = re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*)?`", prose(page))
    nodes = [node for code in python(page) for node in ast.walk(ast.parse(code))]
    chains = [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]
    return names + [name for name in chains if name.split(".")[0] in KNOWN | CALLED and "(" not in name]


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page):
    for name in dotted(page):
        root, *rest = name.split(".")
        suffix = rest[-1] in ("cpp", "cu", "h", "html", "json", "jsonl", "md", "py", "safetensors", "toml")
        if not suffix and (found := owner(root)) is not None:
            assert missing(found, rest) is None, name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M)
    for target in targets:
        path, _, anchor = target.partition("#")
        if not target.startswith("http"):
            linked = PAGES[page].parent / path if path else PAGES[page]
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked.read_text()), target


def anchors(text: str) -> list[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_commands_exist(page):
    text = PAGES[page].read_text()
    for path in re.findall(r"`((?:eigendamage_ext|benchmarks|tests|csrc|docs)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:eigendamage_ext|benchmarks)(?:\.\w+)*)", text):
        assert importlib.util.find_spec(module), module


def command_lines(page: str) -> list[str]:
    """What is typed into a shell: the lines of its blocks, behind a prompt or not, and code in prose."""
    fences = FENCE.findall(PAGES[page].read_text())
    blocks = "\n".join(code for language, code in fences if language in ("sh", "console"))
    lines = [line.removeprefix("$ ") for line in blocks.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose(page))
    return [line for line in lines if re.match(r"(python -m eigendamage_ext|eigendamage|make) [a-z]", line)]


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_taken(page):
    for line in command_lines(page):
        ours = line.replace("python -m eigendamage_ext", "eigendamage")
        program, *arguments = shlex.split(ours, comments=True)
        if program == "make":
            targets = {word for word in arguments if "=" not in word}
            assert targets <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M)), line
        elif "…" not in line:
            _, unknown = cli._parser().parse_known_args(arguments)  # exits where it cannot
            assert not unknown, line


def test_names_of_the_method_are_linked_to_the_files_that_define_them():
    text = prose(METHOD)
    linked = dict(re.findall(r"^\[`([^`]+)`\]: \.\./(\S+\.py)$", text, re.M))
    assert set(re.findall(r"\[`([^`]+)`\](?![(:\[])", text)) == linked.keys()
    for name, file in linked.items():
        names = name.removeprefix(f"{Path(file).stem}.").split(".")
        definition = rf"^(def |class )?{names[0]}\b(\(|:| =)"
        assert re.search(definition, (ROOT / file).read_text(), re.M), f"{file} does not define {name}"
        assert missing(importlib.import_module(MODULES[ROOT / file]), names) is None, name


def test_python_of_the_method_asserts():
    assert all("assert" in code for code in python(METHOD))


@pytest.mark.parametrize("way", forms.WAYS[1:])
def test_forms_are_compared_at_half_the_flops(way):
    dense, small = (flops(*forms.layer(name, 64, 8)[:2]) for name in ("dense", way))
    least, most = (0.5, 0.75) if "next" in way else (0.47, 0.5)
    assert least < small / dense <= most


def flops(layer: nn.Module, channels: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, channels, 8, 8))
    return counter.get_total_flops()
