"""The report page: its figures, its markup, and what it must not do."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch

from eigendamage_ext.report import (
    Key,
    LayerCut,
    LossPair,
    Measurement,
    ReportData,
    Spectrum,
    headline,
    mean_sd,
    rank_correlation,
    render,
    summarize,
    write_report,
)

HOSTILE = """<script>alert("1")</script>&'$x_{2}$"""
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """The page's text, and every rule of markup it is held to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_startendtag(self, tag, attrs):
        self._seen(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def _seen(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            self.attributes.append((tag, key, value or ""))
            if key == "id":
                self.ids.append(value)


def measurements() -> list[Measurement]:
    nets = []
    for seed, (dense, half) in enumerate([(0.98, 0.97), (0.96, 0.96)]):
        nets.append(Measurement(seed, 1.0, dense, dense, 1_234_000, 24_680_000, {8: 30.0}))
        nets.append(Measurement(seed, 0.5, 0.9, half, 617_000, 12_340_000, {8: 20.0}, 0.02, 0.03))
        nets.append(Measurement(seed, 0.25, 0.5, half - 0.1, 308_500, 6_170_000, {8: 12.0}, 0.2, 0.45))
    return nets


def data(layer: str = "layer1.0.conv1", **changes: object) -> ReportData:
    cuts = {
        Key("", budget): [
            LayerCut(layer, "both", (64, rank), (32, 7), (1000, 431), (2000, 862), 0.0123),
            LayerCut("stem", "dense", (1, 1), (64, 64), (576, 576), (9216, 9216), 0.0, "nothing to cut"),
        ]
        for budget, rank in ((0.5, 41), (0.25, 13))
    }
    values = [2.0**-i for i in range(40)]
    spectrum = Spectrum(layer, values, [i < 9 for i in range(40)], [0.0, 3.0], [False, True])
    given = {
        "title": "A title",
        "chosen": Key("", 0.5),
        "measurements": measurements(),
        "layers": cuts,
        "skipped": {"linear": "the classifier head"},
        "spectra": [spectrum, Spectrum("stem", [1.0], [True], values, [True] * 40)],
        "alone": [LossPair(layer, "half", 0.011, 0.017), LossPair("stem", "half", 0.002, -0.001)],
        "settings": {"torch": "2.13", "seeds": "0, 1"},
    }
    return ReportData(**{**given, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return render(data())


def test_rows_of_the_table_hold_the_means_and_deviations(html: str) -> None:
    rows = {row[0]: row for row in Page(html).rows}
    # By hand: the seeds lose 1 and 0 points, sd = 1/√2; 30 / 20 = 1.5.
    assert rows["50 %"][1:] == [
        "90.0 ± 0.0",
        "96.5 ± 0.7",
        "0.5 ± 0.7",
        "0.617",
        "12.34",
        "50.0",
        "20.0 ± 0.0",
        "1.50×",
    ]
    assert rows["dense"][1:] == ["", "97.0 ± 1.4", "", "1.234", "24.68", "100.0", "30.0 ± 0.0", "1.00×"]
    assert rows["25 %"][3] == "10.5 ± 0.7"


def test_rows_of_the_layers_hold_ranks_costs_and_notes(html: str) -> None:
    rows = Page(html).rows
    assert ["layer1.0.conv1", "both", "41 / 64", "7 / 32", "43 %", "43 %", "0.012", ""] in rows
    assert ["stem", "dense", "1 / 1", "64 / 64", "100 %", "100 %", "", "nothing to cut"] in rows
    assert ["linear", "the classifier head"] in rows
    assert ["layer1.0.conv1", "half", "0.011", "0.017", "1.5"] in rows
    assert ["all layers", "25 %", "0.2", "0.45", "2.2"] in rows
    assert ["layer1.0.conv1", "41 · 7", "13 · 7"] in rows and ["stem", "", ""] in rows


def test_the_headline_tells_the_measured_figures(html: str) -> None:
    sentence = (
        "At half the FLOPs the fine-tuned network loses 0.5 ± 0.7 points of accuracy (97.0 → 96.5 %), holds "
        "50 % of the parameters and runs 1.50 times as fast."
    )
    assert headline(data()).replace("\N{NO-BREAK SPACE}", " ") == sentence
    assert headline(data()) in "".join(Page(html).text)


def test_the_headline_says_gains_when_accuracy_rose() -> None:
    nets = [
        Measurement(0, 1.0, 0.9, 0.9, 10, 20, {1: 1.0}),
        Measurement(0, 0.35, 0.9, 0.93, 5, 7, {1: 2.0}),
    ]
    sentence = headline(ReportData("t", measurements=nets)).replace("\N{NO-BREAK SPACE}", " ")
    assert sentence.startswith(
        "At 35 % of the FLOPs the fine-tuned network gains 3.0 points of accuracy (90.0 → 93.0 %)"
    )
    assert sentence.endswith("holds 50 % of the parameters and takes 2.00 times as long.")


def test_every_chart_describes_itself_in_figures(html: str) -> None:
    page = Page(html)
    charts = [value for tag, key, value in page.attributes if tag in ("svg", "div") and key == "aria-label"]
    drawn = sum(key == "role" and value == "img" for _, key, value in page.attributes)
    assert drawn == page.tags.count("svg") + 1 == 7, "two curves, columns, two spectra, two scatters"
    assert sum(bool(re.search(r"\d", description)) for description in charts) >= drawn
    curve = next(c for c in charts if c.startswith("Accuracy against"))
    assert "Dense: 97.0 ± 1.4 %" in curve and "50 % of the FLOPs: 96.5 ± 0.7 %" in curve
    assert any("Input side keeps 9 of 40" in c for c in charts)
    assert any(c.startswith("FLOPs of 2 layers") and "11.2 k before and 10.1 k after" in c for c in charts)


def test_scatter_counts_the_cuts_that_did_not_raise_the_loss(html: str) -> None:
    text = "".join(Page(html).text)
    assert "Open triangles: 1 cut that did not raise the loss." in text
    assert "Rank correlation (Spearman) 1.00 over 2 cuts." in text
    # Two seeds measured the same, so ties: still perfect.
    assert "Rank correlation (Spearman) 1.00 over 4 cuts." in text


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.tags.count("style") == 1, "a chart's own style sheet would apply to the whole page"
    for _, key, value in page.attributes:
        assert not key.startswith("on")
        if key in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_every_colour_follows_the_theme(html: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|fill=|stroke=|style=", charts)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_hostile_names_are_text() -> None:
    html = render(
        data(
            HOSTILE,
            title=HOSTILE,
            subtitle=HOSTILE,
            settings={HOSTILE: HOSTILE},
            skipped={HOSTILE: HOSTILE},
        )
    )
    page = Page(html)
    assert "script" not in page.tags
    assert sum(row[0] == HOSTILE for row in page.rows) == 4
    assert "".join(page.text).count(HOSTILE) == 11
    assert any(HOSTILE in value for _, key, value in page.attributes if key == "aria-label")


def test_sections_without_data_are_left_out() -> None:
    page = Page(render(ReportData("Only a title")))
    assert page.tags.count("h1") == 1 and "h2" not in page.tags and "svg" not in page.tags
    page = Page(render(ReportData("Layers", layers=data().layers)))
    assert page.tags.count("h2") == 1 and page.tags.count("table") == 1


def test_degenerate_numbers_still_make_a_page() -> None:
    page = Page(
        render(
            data(
                measurements=[
                    Measurement(0, 1.0, 0.1, 0.1, 9, 9, {8: 1.0}),
                    Measurement(0, 0.5, 0.1, 0.1, 9, 9, {8: 1.0}, 0.0, 0.0),
                    Measurement(0, 0.25, 0.1, 0.1, 9, 9, {8: 1.0}, 0.0, -1.0),
                ],
                spectra=[Spectrum("dead", [0.0, 0.0], [True, False], [0.0], [True])],
                alone=[LossPair("dead", "half", 0.0, -1.0), LossPair("alive", "half", 0.1, math.nan)],
            )
        )
    )
    assert page.tags.count("svg") == 5
    assert "nan over" not in "".join(page.text)


def test_one_seed_has_no_deviation() -> None:
    page = Page(render(data(measurements=measurements()[:3])))
    row = next(row for row in page.rows if row[0] == "50 %")
    assert row[1:4] == ["90.0", "97.0", "1.0"]


def test_the_same_data_give_the_same_page(html: str) -> None:
    assert render(data()) == html


def test_write_report_leaves_the_old_page_when_it_fails(tmp_path) -> None:
    path = tmp_path / "report.html"
    write_report(path, data())
    old = path.read_bytes()
    assert old.startswith(b"<!DOCTYPE html>")
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "absent" / "report.html", data())
    with pytest.raises(AttributeError):
        write_report(path, data(spectra=[None]))
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_summarize_compares_each_seed_with_its_own_dense_network() -> None:
    rows = summarize(measurements())
    assert [row.key.budget for row in rows] == [1.0, 0.5, 0.25]
    assert rows[1].points_lost == pytest.approx((1.0, 0.0))
    assert rows[1].speedup == {8: (1.5, 1.5)} and rows[1].flops_kept == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ((1.0, 2.0, 3.0), 1, "2.0 ± 1.0"),
        ((-0.01,), 1, "0.0"),
        ((-1.26,), 1, "−1.3"),
        ((1.234, 1.234), 2, "1.23 ± 0.00"),
    ],
)
def test_mean_sd(values: tuple[float, ...], digits: int, expected: str) -> None:
    assert mean_sd(values, digits) == expected


def test_rank_correlation_matches_the_correlation_of_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == 1
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (30,), generator=generator).tolist()
    y = torch.randint(0, 9, (30,), generator=generator).tolist()
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
