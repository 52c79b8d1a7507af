"""Makes pages of the files outside docs/ that are linked from it, and lets the links lead to these."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
ASSETS = ("iframe-worker.js", "style.css")
PLACE = "repository"  # where the pages of files outside docs/ lie in the site
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)|(?<=\]: )(?!\w+:|#)([^\s#]+)")
NAMED = re.compile(r"^\[(`[^`]+`)\]: (\S+)\n", re.MULTILINE)  # Python-Markdown follows no reference of code
LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cpp", ".cuh": "cpp", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files outside docs/, and what they link to in turn."""
    waiting = [*ALWAYS, *(path for file in files.documentation_pages() for path in linked(file.src_uri))]
    while waiting:
        path = waiting.pop()
        place = source_of(path)
        if files.get_file_from_path(place) is None and (ROOT / path).is_file():
            files.append(File.generated(config, place, content=text_of(path)))
            if place.endswith(path):
                waiting += linked(place)
    for name in ASSETS:
        files.append(File.generated(config, name, abs_src_path=str(SITE / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that lead out of docs/ into links to the pages made of these files."""
    here = page.file.src_uri
    for name, link in NAMED.findall(markdown):
        markdown = re.sub(
            rf"\[{re.escape(name)}\](?![:(\[])", lambda m, link=link: f"{m[0]}({link})", markdown
        )
    markdown = NAMED.sub("", markdown)

    def moved(match: re.Match[str]) -> str:
        place = source_of(target(here, match[0]))
        return (
            posixpath.relpath(place, posixpath.dirname(here)) if files.get_file_from_path(place) else match[0]
        )

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def linked(place: str) -> list[str]:
    """The files of the repository that a page links to."""
    text = FENCE.sub("", (ROOT / path_of(place)).read_text())
    return [target(place, match[0]) for match in LINK.finditer(text)]


def target(place: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path_of(place)), link))


def path_of(place: str) -> str:
    """What file of the repository a page of the site is made of."""
    return place.removeprefix(f"{PLACE}/") if place.startswith(f"{PLACE}/") else f"docs/{place}"


def source_of(path: str) -> str:
    """Where the site has a file of the repository: a Markdown page, or a page that shows its text."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{PLACE}/{path}" if path.endswith(".md") else f"{PLACE}/{path}.md"


def text_of(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n``````{language}\n{text}``````\n"
