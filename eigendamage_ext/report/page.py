"""The page itself: `ReportData` to HTML. Its first screen says what was achieved, and at what cost."""

from collections.abc import Iterator, Sequence
from html import escape
from statistics import fmean

from .compared import frontier, losses, numbers
from .data import ReportData, Summary, chosen_row, headline, summarize
from .layers import layers, spectra
from .markup import section
from .style import CSS
from .words import speed, unit


def render(data: ReportData) -> str:
    """The page of ``data`` as HTML."""
    rows = summarize(data.measurements)
    chosen = chosen_row(data, rows)
    sections = (
        _header(data, rows, chosen),
        frontier(rows, chosen),
        numbers(rows, chosen),
        layers(data, rows, chosen),
        spectra(data, chosen),
        losses(data, rows),
        _settings(data),
    )
    body = "\n".join(filter(None, sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(data.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(data: ReportData, rows: Sequence[Summary], chosen: Summary | None) -> str:
    parts = ["<header>", '<p class="eyebrow">EigenDamage report</p>', f"<h1>{escape(data.title)}</h1>"]
    if sentence := headline(data):
        parts.append(f'<p class="headline">{escape(sentence)}</p>')
    if chosen is not None and rows[0].dense:
        tiles = "\n".join(
            f"<div><dt>{name}</dt><dd>{before} → <strong>{after}</strong>{unit}</dd>"
            f'<dd class="note">{note}</dd></div>'
            for name, before, after, unit, note in _tiles(rows[0], chosen)
        )
        parts.append(f'<dl class="strip">\n{tiles}\n</dl>')
    return "\n".join([*parts, "</header>"])


def _tiles(dense: Summary, row: Summary) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, before, after, unit and a remark of each figure that matters."""
    if row.points_lost:
        lost = fmean(row.points_lost)
        words = f"{abs(lost):.1f} points {'lost' if lost > -0.05 else 'gained'}"
        yield "accuracy", f"{fmean(dense.accuracy):.1f}", f"{fmean(row.accuracy):.1f}", " %", words
    for name, whole, kept in (("FLOPs", dense.flops, row.flops), ("parameters", dense.params, row.params)):
        before, after = fmean(whole), fmean(kept)
        letter, size = unit(before)
        share = f"{100 * after / before:.3g} % kept"
        yield name, f"{before / size:.3g}", f"{after / size:.3g}", f" {letter}".rstrip(), share
    for n, speedup in row.speedup.items():
        before, after = fmean(dense.milliseconds[n]), fmean(row.milliseconds[n])
        yield (
            f"time, batch of {n}",
            f"{before:.3g}",
            f"{after:.3g}",
            " ms",
            speed(fmean(speedup)).removeprefix("runs "),
        )


def _settings(data: ReportData) -> str:
    if not data.settings and not data.subtitle:
        return ""
    items = "\n".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in data.settings.items()
    )
    return section("How this was made", escape(data.subtitle), f'<dl class="settings">\n{items}\n</dl>')
