"""Writes what `<!-- api: module -->` stands for, from signatures and docstrings, without importing."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- api: ([\w.]+)((?: \w+)*) -->$", re.MULTILINE)
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Warns|Attributes):\n", re.MULTILINE)
ENTRY = re.compile(r"^    (\S.*?): +", re.MULTILINE)
TABLE = re.compile(r"^((?:=+ ).*^(?:=+ ).*?\n)(?=\n|\Z)", re.MULTILINE | re.DOTALL)
WIDTH = 88

Function = ast.FunctionDef
Definition = ast.FunctionDef | ast.ClassDef


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the public names of a module, or those that are listed behind it, where its marker stands."""
    return MARKER.sub(lambda match: "\n".join(reference(match[1], match[2].split())), markdown)


def reference(module: str, names: list[str]) -> Iterator[str]:
    prefix = f"{module}.".removeprefix("eigendamage_ext.")
    for name in names or exported(module):
        node = definition(module, name)
        if node is not None:
            yield from entry(name, node, prefix)


def exported(module: str) -> list[str]:
    """The names in a module's `__all__`, or its public functions and classes."""
    names = []
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
    return names


def definition(module: str, name: str) -> Definition | None:
    """The function or class that a name of a module stands for, through imports; None of anything else."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            package = module.split(".") if file(module).name == "__init__.py" else module.split(".")[:-1]
            stem = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*stem, *(node.module or "").split(".")]).strip(".")
            return definition(source, name) if file(f"{source}.{name}") is None else None
    return None


@functools.cache
def tree(module: str) -> ast.Module:
    path = file(module)
    assert path is not None, module
    return ast.parse(path.read_text())


def file(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def entry(name: str, node: Definition, prefix: str, depth: int = 3) -> Iterator[str]:
    """The Markdown of a function or class, and of the methods of a class."""
    yield f"\n{'#' * depth} `{name}` {{: #{prefix}{name} }}\n"
    yield f"```python\n{signature(node)}\n```\n"
    yield text(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
            if public and ast.get_docstring(method):
                yield from entry(f"{name}.{method.name}", method, prefix, depth + 1)


def signature(node: Definition) -> str:
    """The first lines of a definition, without its body; of a class what it is made with."""
    if isinstance(node, ast.ClassDef):
        made = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"]
        fields = [
            written(f) for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.unparse(f)
        ]
        given = parameters(made[0])[1:] if made else fields or [written(base) for base in node.bases]
        return call(f"class {node.name}", given)
    given = [p for p in parameters(node) if p not in ("self", "cls")]
    decorators = "".join(f"@{ast.unparse(d)}\n" for d in node.decorator_list)
    returned = f" -> {written(node.returns)}" if node.returns else ""
    return f"{decorators}{call(f'def {node.name}', given, returned)}"


def parameters(node: Function) -> list[str]:
    given = node.args
    pieces = [written(argument) for argument in given.posonlyargs + given.args]
    for i, default in enumerate(reversed(given.defaults), 1):
        pieces[-i] += f" = {written(default)}"
    if given.vararg or given.kwonlyargs:
        pieces.append(f"*{ast.unparse(given.vararg)}" if given.vararg else "*")
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        pieces.append(written(argument) + (f" = {written(default)}" if default else ""))
    return pieces + ([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else [])


def written(node: ast.AST) -> str:
    """The source of a piece of a signature; a class in quotes loses them."""
    source = ast.unparse(node).replace("'", '"')
    return re.sub(r'^"([A-Z]\w*)"$', r"\1", source)


def call(head: str, given: list[str], tail: str = "") -> str:
    line = f"{head}({', '.join(given)}){tail}"
    if len(line) <= WIDTH:
        return line
    return "\n    ".join([f"{head}(", *(f"{piece}," for piece in given)]) + f"\n){tail}"


def text(docstring: str) -> str:
    """A Google docstring as Markdown: each section a heading in bold, its entries a list."""
    before, *rest = SECTION.split(docstring)
    lines = [TABLE.sub(r"```text\n\1```\n", before).replace("\n::\n", "").replace("::\n", ":\n")]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        names = [] if title in ("Returns", "Yields") else ENTRY.split(body)[1:]
        listed = [f"- `{name}`: {flat(said)}" for name, said in zip(names[::2], names[1::2], strict=True)]
        lines.append(f"**{title}**\n\n" + ("\n".join(listed) or flat(body)) + "\n")
    return "\n".join(lines)


def flat(lines: str) -> str:
    return " ".join(lines.split())
