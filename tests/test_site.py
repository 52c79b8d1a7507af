"""The site that `make docs` makes: complete, and from this machine alone."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import eigendamage_ext as ed
from eigendamage_ext import data, ops

pytest.importorskip("mkdocs")
pytest.importorskip("material")

ROOT = Path(__file__).resolve().parents[1]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
LOADED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?\b(?:href|src)=\"?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["-f", str(ROOT / "docs/site/mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr  # strict: a dead link or anchor is an error
    return folder


def text(page, after="<body", before="</body>"):
    """What a reader sees of a part of a page."""
    part = page.read_text().split(after, 1)[1].split(before, 1)[0]
    return re.sub(r"<[^>]+>", "", part)


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not LOADED.search(page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_every_public_name_is_in_the_reference(site):
    anchors = set(re.findall(r'<h\d id="([^"]+)"', (site / "api.html").read_text()))
    assert set(ed.__all__) - {"ops"} <= anchors
    assert {f"ops.{name}" for name in ops.__all__} <= anchors
    assert {f"data.{name}" for name in data.__all__} - {"data.Transform"} <= anchors
    assert {"Factors.second_moments", "Pruner.result", "training.Checkpoint"} <= anchors


def test_the_reference_says_what_docstrings_say(site):
    entry = text(site / "api.html", after='<h3 id="ops.covariance"', before="<h3")
    assert "feature_dim: int = -1" in entry and "number g of consecutive blocks of features" in entry


def test_files_that_are_linked_are_pages(site):
    file = "repository/eigendamage_ext/pruning/forms.py.html"
    assert f'<a href="{file}"><code>factorize</code></a>' in (site / "method.html").read_text()
    assert "def factorize(" in text(site / file)


@pytest.mark.parametrize("page", sorted(path.stem for path in ROOT.glob("docs/*.md") if path.stem != "api"))
def test_pages_have_the_structure_that_they_have_elsewhere(site, page):
    markdown = MarkdownIt("commonmark").enable("table").render((ROOT / f"docs/{page}.md").read_text())
    article = (site / f"{page}.html").read_text().split("<article", 1)[1].split("</article>", 1)[0]
    tags = re.compile(r"<(li|ol|ul|table|tr|pre|blockquote|em|strong)\b")
    assert Counter(tags.findall(article)) == Counter(tags.findall(markdown))


def test_search_needs_no_server(site):
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    asked, problems = [], []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(error))
        page.goto(f"{site.as_uri()}/index.html")
        page.click(".md-search__input")
        page.keyboard.type("second moment")
        page.wait_for_selector(".md-search-result__link")
        found = page.eval_on_selector_all(".md-search-result__link", "links => links.map(link => link.href)")
        browser.close()
    assert any("#ops.gradient_second_moment" in link for link in found)
    assert not problems and all(url.startswith(("file:", "data:", "about:")) for url in asked)
