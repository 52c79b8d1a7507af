"""The page in a browser: its numbers, its looks in both themes and on a phone; and it fetches nothing."""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eigendamage_ext.report import Key, LayerCut, LossPair, Measurement, ReportData, Spectrum, write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync"""
HOSTILE = """</title><script>window.hit = 1</script><img src=x onerror="window.hit = 2">&amp;'"."""
WIDE = (1200, 900)
PHONE = (375, 812)


def cuts(prefix: str, layers: int, kept: float) -> list[LayerCut]:
    """Layers of growing width, of which every third stays as it is."""
    made = []
    for i in range(layers):
        width = 16 + 8 * i
        rank = width if i % 3 == 0 else max(1, round(kept * width))
        form = "dense" if rank == width else "both"
        params = (9 * width**2, 9 * rank**2)
        flops = (64 * params[0] // (1 + i), 64 * params[1] // (1 + i))
        note = "no cut pays at this budget" if form == "dense" else ""
        loss = 0.0 if form == "dense" else 1e-5 * (i + 1)
        made.append(
            LayerCut(f"{prefix}{i}.conv", form, (width, rank), (width, rank), params, flops, loss, note)
        )
    return made


def spectrum(cut: LayerCut) -> Spectrum:
    values = [2.0 ** (-20 * i / cut.inputs[0]) for i in range(cut.inputs[0])]
    kept = [i < cut.inputs[1] for i in range(cut.inputs[0])]
    return Spectrum(cut.name, values, kept, values[::-1], kept[::-1])


def sweep(prefix: str, layers: int) -> ReportData:
    """Two methods at three budgets, everything known."""
    total = sum(cut.flops[0] for cut in cuts(prefix, layers, 1))
    rows = [Measurement(0, 1.0, 0.931, 0.931, 1_170_000, total, {1: 4.0, 64: 90.0})]
    plans = {}
    for place, method in enumerate((f"{prefix}-first", "second")):
        for budget in (0.8, 0.5, 0.3):
            made = cuts(prefix, layers, budget ** (0.5 + place))
            flops = sum(cut.flops[1] for cut in made)
            accuracy = 0.93 - 0.2 * (1 - budget) ** 2 - 0.01 * place
            rows.append(
                Measurement(
                    0, budget, accuracy - 0.3, accuracy, int(1_170_000 * budget), flops,
                    {1: 4.0 * budget**0.1, 64: 90.0 * budget**0.5},
                    0.01 / budget, 0.05 / budget**2 - 0.08 * place, method,
                )
            )  # fmt: skip
            plans[rows[-1].key] = made
    chosen = Key(f"{prefix}-first", 0.5)
    return ReportData(
        title=f"{prefix} in a browser",
        subtitle=f"About {prefix}.",
        chosen=chosen,
        measurements=rows,
        layers=plans,
        why="One threshold.",
        skipped={f"{prefix}.head": f"a reason {prefix}"},
        spectra=[spectrum(cut) for cut in plans[chosen]],
        alone=[LossPair(f"{prefix}{i}", "half", 1e-4 * 2**i, 3e-4 * 2**i - 4e-4) for i in range(12)],
        settings={"network": prefix, "SHA-256": "0123456789abcdef" * 4},
    )


def filters() -> ReportData:
    """One network that lost filters, two of its layers coupled; it was not fine-tuned or timed."""
    layers = [
        LayerCut("stem", "filters", (3, 3), (16, 10), (432, 270), (43200, 27000), None, "", "stem"),
        LayerCut("block", "filters", (16, 10), (16, 10), (2304, 900), (230400, 90000), None, "", "stem"),
        LayerCut("alone", "filters", (16, 10), (8, 4), (128, 40), (256, 80), None, "", "alone"),
        LayerCut("head", "filters", (8, 4), (4, 4), (32, 16), (64, 32), None, "it makes the output"),
    ]
    rows = [
        Measurement(0, 1.0, 0.9, 0.9, 2800, 273728),
        Measurement(0, 0.43, None, 0.88, 1210, 117080, method="l1"),
    ]
    return ReportData("Filters", measurements=rows, layers={rows[1].key: layers})


PAGES = {
    "sweep": sweep("net", 10),
    "long": sweep("layers.stage", 60),
    "filters": filters(),
    "hostile": sweep(HOSTILE, 4),
    "bare": ReportData("Nothing measured", settings={"date": "today"}),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, data in PAGES.items():
        write_report(folder / f"{name}.html", data)
    return {name: folder / f"{name}.html" for name in PAGES}


class View:
    """A page as opened: what it asked for, what it complained of."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int], scheme: str, script: bool) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, java_script_enabled=script
        )
        self.page = self.context.new_page()
        own = path.as_uri()
        self.page.route(
            "**/*", lambda route: route.continue_() if route.request.url == own else route.abort()
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(own)
        assert self.asked.pop(0) == own

    def table(self, caption: str) -> list[dict[str, str]]:
        """The rows of a table, by the names of their columns."""
        found = self.page.evaluate(
            """caption => {
                const table = [...document.querySelectorAll("table")].find(
                    t => t.caption.innerText.trim().startsWith(caption));
                const cells = row => [...row.cells].map(c => c.textContent.replaceAll("\\u00a0", " "));
                return [...table.rows].map(cells);
            }""",
            caption,
        )
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture
def view(browser: Any, paths: dict[str, Path]) -> Iterator[Any]:
    opened = []

    def open_page(name: str, size: tuple[int, int] = WIDE, scheme: str = "light", script: bool = True) -> Any:
        opened.append(View(browser, paths[name], size, scheme, script))
        return opened[-1]

    yield open_page
    for one in opened:
        assert one.asked == [] and one.complaints == []
        one.context.close()


def test_the_first_screen_says_what_was_achieved(view: Any) -> None:
    page, data = view("sweep").page, PAGES["sweep"]
    dense, chosen = data.measurements[0], next(m for m in data.measurements if m.key == data.chosen)
    headline = page.locator(".headline")
    assert f"{100 * dense.accuracy:.1f} → {100 * chosen.accuracy:.1f}" in headline.inner_text()
    tiles = {
        tile.locator("dt").inner_text(): tile.inner_text() for tile in page.locator(".strip > div").all()
    }
    assert list(tiles) == ["accuracy", "FLOPs", "parameters", "time, batch of 1", "time, batch of 64"]
    assert f"{100 * (dense.accuracy - chosen.accuracy):.1f} points lost" in tiles["accuracy"]
    assert f"{100 * chosen.flops / dense.flops:.3g} % kept" in tiles["FLOPs"]
    assert f"{chosen.params / 1e3:.3g} k" in tiles["parameters"].replace("1.17 → 0.585 M", "585 k")
    assert "90 → 63.6 ms" in tiles["time, batch of 64"] and "1.41 times as fast" in tiles["time, batch of 64"]
    for part in (headline, page.locator(".strip"), page.get_by_role("img", name="Accuracy against").first):
        box = part.bounding_box()
        assert box and box["y"] + 0.8 * box["height"] < WIDE[1]


def test_tables_hold_the_data(view: Any) -> None:
    shown, data = view("sweep"), PAGES["sweep"]
    dense = data.measurements[0]
    rows = shown.table("Every network")
    assert len(rows) == len(data.measurements)
    for m, row in zip(data.measurements[1:], rows[1:], strict=True):
        assert (row["budget"], row["method"]) == (f"{100 * m.budget:.0f} %", m.method)
        assert float(row["fine-tuned, %"]) == pytest.approx(100 * m.accuracy, abs=0.051)
        assert float(row["accuracy before, %"]) == pytest.approx(100 * m.accuracy_cut, abs=0.051)
        assert float(row["FLOPs kept, %"]) == pytest.approx(100 * m.flops / dense.flops, abs=0.051)
        assert float(row["parameters, M"]) == pytest.approx(m.params / 1e6, abs=0.00051)
        assert float(row["ms, batch of 64"]) == pytest.approx(m.milliseconds[64], abs=0.051)
    marked = shown.page.locator("tr[aria-current=true]")
    assert marked.count() == 1 and "50" in marked.inner_text() and "net-first" in marked.inner_text()
    layers = {row["layer"]: row for row in shown.table("Layers, net-first")}
    for cut in data.layers[data.chosen]:
        row = layers[cut.name]
        assert row["form"] == cut.form and row["note"] == cut.note
        assert row["inputs kept"] == f"{cut.inputs[1]} / {cut.inputs[0]}"
        assert row["FLOPs"] == f"{100 * cut.flops[1] / cut.flops[0]:.0f} %"
    glance = shown.table("Input · output directions kept")
    assert [row["layer"] for row in glance] == [cut.name for cut in data.layers[data.chosen]]
    assert glance[1]["second, 30 %"] == "{0} · {0}".format(data.layers[Key("second", 0.3)][1].inputs[1])
    assert shown.table("Layers that no plan has") == [{"layer": "net.head", "why": "a reason net"}]


def test_filters_are_shown_group_by_group(view: Any) -> None:
    shown = view("filters")
    assert shown.table("Coupled layers") == [
        {"group": "stem", "layers": "stem, block", "filters kept": "10 / 16"}
    ]
    kept = [row["filters kept"] for row in shown.table("Layers")]
    assert kept == ["10 / 16", "10 / 16", "4 / 8", "4 / 4"]
    assert shown.page.get_by_role("heading", name="Eigenvalue spectra").count() == 0
    assert "2.0 points" in shown.page.locator(".headline").inner_text()
    assert "fast" not in shown.page.locator("header").inner_text()


def places(page: Any, chart: str) -> tuple[list[dict[str, float]], dict[str, tuple[float, float]]]:
    """Numbers on the axes of a chart with where they are, and the marks' middles by their titles."""
    box = page.get_by_role("img", name=chart).first
    ticks = box.evaluate(
        """svg => [...svg.querySelectorAll("text")].map(t => {
            const b = t.getBBox();
            return {text: t.textContent, x: b.x + b.width / 2, y: b.y + b.height / 2,
                    end: t.getAttribute("text-anchor") == "end"};
        })"""
    )
    marks = box.evaluate(
        """svg => Object.fromEntries([...svg.querySelectorAll("path > title")].map(t => {
            const b = t.parentElement.getBBox();
            return [t.textContent, [b.x + b.width / 2, b.y + b.height / 2]];
        }))"""
    )
    numbered = [
        tick | {"value": float(tick["text"])} for tick in ticks if re.fullmatch(r"[\d.]+", tick["text"])
    ]
    return numbered, {title: tuple(place) for title, place in marks.items()}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_points_lie_where_the_axes_say(view: Any, scale: str) -> None:
    data = PAGES["sweep"]
    dense = data.measurements[0]
    linear = scale == "linear"
    ticks, marks = places(view("sweep").page, "Accuracy against" if linear else "Measured against")

    def read(at: float, axis: str) -> float:
        """The value at a place, from the two ticks of an axis that are farthest apart."""
        low, *_, high = sorted((t for t in ticks if t["end"] == (axis == "y")), key=lambda t: t["value"])
        values = [t["value"] if linear else math.log10(t["value"]) for t in (low, high)]
        value = values[0] + (at - low[axis]) / (high[axis] - low[axis]) * (values[1] - values[0])
        return value if linear else 10**value

    expected = (
        {
            f"{m.method}, {100 * m.budget:.0f} %": (100 * m.flops / dense.flops, 100 * m.accuracy)
            for m in data.measurements[1:]
        }
        if linear
        else {f"{pair.layer}, half": (pair.predicted, pair.measured) for pair in data.alone}
    )
    for name, (x, y) in expected.items():
        title = next(t for t in marks if t.startswith(f"{name}: ") and "before" not in t)
        if y > 0:
            got = read(marks[title][0], "x"), read(marks[title][1], "y")
            assert got == pytest.approx((x, y), **({"abs": 0.5} if linear else {"rel": 0.05}))
    if not linear:
        assert sum(pair.measured <= 0 for pair in data.alone) == 1
        assert "Open triangles: 1 cut that" in view("sweep").page.locator("figcaption").nth(4).inner_text()


def test_columns_are_as_high_as_the_flops(view: Any) -> None:
    data = PAGES["long"]
    bars = view("long").page.locator(".columns i")
    made = data.layers[data.chosen]
    sizes = bars.evaluate_all("bars => bars.map(b => getComputedStyle(b).backgroundSize)")
    most = max(cut.flops[0] for cut in made)
    for cut, size, bar in zip(made, sizes, bars.all(), strict=True):
        after, before = (float(part.split()[1].rstrip("%")) for part in size.split(", "))
        assert (before, after) == pytest.approx(
            [100 * f / most for f in cut.flops[:1] + cut.flops[1:]], rel=0.01
        )
        assert cut.name in bar.get_attribute("title")
    assert min(bars.evaluate_all("bars => bars.map(b => b.getBoundingClientRect().width)")) > 5


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_sticks_out_or_overlaps(view: Any, name: str, size: tuple[int, int]) -> None:
    page = view(name, size).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    out = page.evaluate(
        """() => [...document.body.querySelectorAll("*")].filter(e => {
            const b = e.getBoundingClientRect();
            return b.width && !e.closest(".scroll") && (b.right > innerWidth + 1 || b.left < -1);
        }).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert out == []
    clashes = page.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap(svg => {
            const view = svg.viewBox.baseVal;
            const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBBox()]);
            const cut = texts.filter(([, b]) => b.x < -1 || b.x + b.width > view.width + 1
                || b.y < -1 || b.y + b.height > view.height + 1);
            const over = texts.flatMap(([s, a], i) => texts.slice(i + 1).filter(([, b]) =>
                a.x < b.x + b.width - 1 && b.x < a.x + a.width - 1
                && a.y < b.y + b.height - 2 && b.y < a.y + a.height - 2).map(([t]) => [s, t]));
            return [...cut.map(([s]) => s), ...over];
        })"""
    )
    assert clashes == []
    boxes = page.locator(".scroll").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert all(width <= size[0] for width in boxes)


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgb = colour => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = c => {
        const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const found = {};
    for (const e of document.body.querySelectorAll("*")) {
        if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || e.tagName == "title") continue;
        let under = e;
        while (under && rgb(getComputedStyle(under).backgroundColor)[3] < 255) under = under.parentElement;
        const style = getComputedStyle(e), ink = rgb(e.closest("svg") ? style.fill : style.color);
        const paper = rgb(under ? getComputedStyle(under).backgroundColor : "white");
        const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05), what = `${e.tagName} ${e.className?.baseVal ?? e.className}`;
        if (!(what in found) || ratio < found[what][0]) found[what] = [ratio, e.textContent.slice(0, 40)];
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(view: Any, scheme: str) -> None:
    page = view("sweep", scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(CONTRAST)
    assert len(found) > 20 and any(what.startswith("text") for what in found)
    assert {what: got for what, got in found.items() if got[0] < 4.5} == {}
    marks = page.evaluate(
        """() => [0, 1, 2, 3, 4, 5].map(i => getComputedStyle(document.body).getPropertyValue("--s" + i))"""
    )
    assert len(set(marks)) == 6
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(map(int, re.findall(r"\d+", paper))) < 200
    assert darkness == (scheme == "dark")


def test_dark_colours_reach_the_charts(view: Any) -> None:
    def colours(scheme: str) -> list[str]:
        page = view("sweep", scheme=scheme).page
        return page.locator("svg .mark, svg .grid, svg text, .columns i").evaluate_all(
            "all => all.slice(0, 400).map(e => { const s = getComputedStyle(e);"
            "return e.tagName == 'I' ? s.backgroundImage : e.tagName == 'text' ? s.fill : s.color; })"
        )

    light, dark = colours("light"), colours("dark")
    assert len(light) == len(dark) > 50
    assert not set(light) & set(dark)


@pytest.mark.parametrize("name", ["sweep", "filters"])
def test_readers_that_do_not_see_it_are_told_the_same(view: Any, name: str) -> None:
    page, data = view(name).page, PAGES[name]
    charts = page.get_by_role("img")
    assert charts.count() == page.locator("svg").count() + 1
    for chart in charts.all():
        assert re.search(r"\d", chart.get_attribute("aria-label"))
    assert page.get_by_role("heading", level=1).count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels == ["H1"] + ["H2"] * (len(levels) - 1) and len(levels) >= 3
    first = data.layers[data.chosen or Key("l1", 0.43)][0]
    assert page.get_by_role("rowheader", name=first.name).count() >= 1
    assert page.get_by_role("columnheader", name="FLOPs", exact=True).count() == 1
    for box in page.locator(".scroll").all():
        assert box.get_attribute("tabindex") == "0" and box.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_hostile_names_are_only_names(view: Any) -> None:
    shown = view("hostile")
    assert shown.page.evaluate("window.hit") is None
    assert shown.page.locator("script, img").count() == 0
    assert shown.page.title() == f"{HOSTILE} in a browser"
    assert [row["layer"] for row in shown.table("Layers,")] == [f"{HOSTILE}{i}.conv" for i in range(4)]
    assert shown.table("Layers that no plan has") == [
        {"layer": f"{HOSTILE}.head", "why": f"a reason {HOSTILE}"}
    ]
    above = shown.page.locator("svg .name").all_text_contents()
    assert (
        all(f"{HOSTILE}{i}.conv".endswith(name.removeprefix("…")) for i, name in enumerate(above)) and above
    )
    titles = shown.page.locator("svg title").all_text_contents()
    assert any(title.startswith(f"{HOSTILE}-first, 50 %") for title in titles)


def test_without_scripts_the_page_is_the_same(view: Any) -> None:
    pages = [view("sweep", script=script).page for script in (True, False)]
    first, second = (page.locator("main").inner_text() for page in pages)
    assert first == second and "In numbers" in first


def test_print_shows_all_on_white(view: Any) -> None:
    page = view("long", size=(700, 1000), scheme="dark").page  # about what A4 has between its margins
    hidden = page.get_by_text("48 more layers").locator("..").locator("svg").first
    assert not hidden.is_visible()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert hidden.is_visible()
    widths = page.locator("table").evaluate_all("all => all.map(t => t.getBoundingClientRect().width)")
    assert max(widths[:2]) <= 700, "the table of networks and that of layers"


def test_a_long_network_with_everything_is_a_small_file(paths: dict[str, Path]) -> None:
    assert len(PAGES["long"].spectra) == 60 and paths["long"].stat().st_size < 400_000
