"""The Python of README.md and docs/*.md runs, each page in one go, on smaller networks and fewer images."""

import ast
import re
from pathlib import Path

import pytest
import torch

import eigendamage_ext.data
from eigendamage_ext.data import Split, digits

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
BLOCK = re.compile(
    r"(?:^<!-- (not run|needs): (.+?) -->\n+)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SMALLER = {"widths=(64, 128, 256)": "widths=(8, 16, 64)", r"epochs=\d+": "epochs=1"}
IMAGES = 64


def blocks(page: str) -> list[tuple[int, str, str, str]]:
    """Of each block of Python its line, what its comment is and says, and its text."""
    text = PAGES[page].read_text()
    return [(text.count("\n", 0, m.start(3)), *m.groups(default="")) for m in BLOCK.finditer(text)]


def smaller(code: str) -> str:
    for pattern, less in SMALLER.items():
        code = re.sub(re.escape(pattern) if "(" in pattern else pattern, less, code)
    return code


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch, tmp_path):
    few = [(images[:IMAGES], labels[:IMAGES]) for images, labels in digits(seed=0)]
    monkeypatch.setattr(eigendamage_ext.data, "digits", lambda seed=0: Split(*few))
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:save. the model's file will load with")  # of a network that shows it
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_runs(page):
    namespace = {}
    for line, kind, said, code in blocks(page):
        if kind == "not run":
            continue
        if kind == "needs":
            pytest.importorskip(said)
        torch.manual_seed(0)
        exec(compile("\n" * line + smaller(code), str(PAGES[page]), "exec"), namespace)


def test_few_blocks_are_not_run():
    kinds = [kind for page in PAGES for _, kind, _, _ in blocks(page)]
    assert kinds.count("not run") <= 2 and len(kinds) > 20


def said_by_the_package() -> list[re.Pattern[str]]:
    """Its strings of some length, with anything where a value is put in."""
    patterns = []
    for path in ROOT.glob("eigendamage_ext/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(text) for text in texts if isinstance(text, str)) > 20:
                patterns.append("".join(re.escape(t) if isinstance(t, str) else ".+" for t in texts))
    return [re.compile(pattern) for pattern in patterns]


def test_messages_that_are_explained_are_said():
    quotes = re.findall(r"(?:^> .*\n)+", PAGES["docs/troubleshooting.md"].read_text(), re.MULTILINE)
    patterns = said_by_the_package()
    assert quotes
    for quote in quotes:
        message = " ".join(line.removeprefix("> ") for line in quote.splitlines())
        assert any(pattern.fullmatch(message) for pattern in patterns), message
