"""The page itself: `ReportData` to HTML."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean, median

from . import charts
from .data import ReportData, Summary, headline, mean_sd, rank_correlation, summarize
from .style import CSS

_MAX_SPECTRA = 24


def render(data: ReportData) -> str:
    """The page of ``data`` as HTML."""
    rows = summarize(data.measurements)
    body = "\n".join(
        section
        for section in (
            _header(data),
            _accuracy(rows),
            _table(rows),
            _layers(data),
            _spectra(data),
            _losses(data),
            _settings(data),
        )
        if section
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(data.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, text: str, *content: str) -> str:
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", f"<p>{text}</p>", *content, "</section>"])


def _html_table(caption: str, align: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain strings, escaped here; ``align`` has "l" for a column of text, "r" for numbers."""
    number = [' class="number"' if side == "r" else "" for side in align]
    head = "".join(f'<th scope="col"{n}>{escape(cell)}</th>' for n, cell in zip(number, header, strict=True))
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{n}>{escape(cell)}</td>" for n, cell in zip(number[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _key(colour: str, text: str) -> str:
    return f'<span class="legend"><span class="key {colour}"></span>{text}</span>'


def _header(data: ReportData) -> str:
    parts = ["<header>", '<p class="eyebrow">EigenDamage report</p>', f"<h1>{escape(data.title)}</h1>"]
    if sentence := headline(data):
        parts.append(f'<p class="headline">{escape(sentence)}</p>')
    if data.subtitle:
        parts.append(f'<p class="subtitle">{escape(data.subtitle)}</p>')
    return "\n".join([*parts, "</header>"])


def _accuracy(rows: Sequence[Summary]) -> str:
    pruned = [row for row in rows if row.budget < 1]
    if not pruned:
        return ""
    dense = rows[0]
    budgets = [fmean(row.flops_kept) for row in pruned]
    told = "; ".join(
        f"{100 * b:.0f} % of the FLOPs: {fmean(r.accuracy):.1f} %"
        for b, r in zip(budgets, pruned, strict=True)
    )
    curve = charts.accuracy(
        "accuracy",
        f"Accuracy after fine-tuning against FLOPs kept. Dense: {fmean(dense.accuracy):.1f} %; {told}.",
        budgets=budgets,
        before=[row.accuracy_cut for row in pruned],
        after=[row.accuracy for row in pruned],
        dense=fmean(dense.accuracy),
    )
    clock = charts.time(
        "time",
        "Time of a batch relative to the dense network against FLOPs kept: "
        + "; ".join(
            f"{100 * b:.0f} %: {1 / fmean(r.speedup):.2f}" for b, r in zip(budgets, pruned, strict=True)
        ),
        budgets=budgets,
        relative=[[1 / s for s in row.speedup] for row in pruned],
    )
    return _section(
        "Accuracy and time against FLOPs",
        "One set of Kronecker factors per trained network serves every budget. "
        "Lines are means; each faint dot is one seed.",
        '<div class="pair">',
        _figure(
            curve,
            f"{_key('accent', 'fine-tuned')} {_key('warm', 'before fine-tuning')} {_key('dashed', 'dense')}",
        ),
        _figure(
            clock,
            f"{_key('accent', 'measured')} {_key('dashed', 'dense')} "
            f"{_key('dotted', 'if time followed FLOPs')}",
        ),
        "</div>",
    )


def _table(rows: Sequence[Summary]) -> str:
    if not rows:
        return ""
    seeds = len(rows[0].accuracy)
    header = (
        "FLOPs budget",
        "accuracy before, %",
        "fine-tuned, %",
        "points lost",
        "parameters, M",
        "FLOPs, M",
        "FLOPs kept, %",
        "ms per batch",
        "speed",
    )
    body = [
        (
            "dense" if row.budget == 1 else f"{100 * row.budget:.3g} %",
            "" if row.budget == 1 else mean_sd(row.accuracy_cut),
            mean_sd(row.accuracy),
            "" if row.budget == 1 else mean_sd(row.points_lost),
            f"{fmean(row.params) / 1e6:.3f}",
            f"{fmean(row.flops) / 1e6:.2f}",
            f"{100 * fmean(row.flops_kept):.1f}",
            mean_sd(row.milliseconds),
            f"{fmean(row.speedup):.2f}×",
        )
        for row in rows
    ]
    spread = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return _section(
        "In numbers",
        "Points lost compares each seed with its own dense network. FLOPs are two per multiply-add of "
        "convolutions and linear layers, for one example.",
        _html_table(f"Every budget, {spread}", "lrrrrrrrr", header, body),
    )


def _layers(data: ReportData) -> str:
    if not data.layers:
        return ""
    budgets = sorted(data.layers, reverse=True)
    names = [layer.name for layer in data.layers[budgets[0]]]
    plans = {budget: {layer.name: layer for layer in data.layers[budget]} for budget in budgets}
    maps = []
    for side in ("input", "output"):
        ranks: list[list[tuple[int, int]]] = []
        for name in names:
            layers = [plans[budget][name] for budget in budgets]
            ranks.append(
                [
                    (c.input_rank, c.in_channels) if side == "input" else (c.output_rank, c.out_channels)
                    for c in layers
                ]
            )
        told = "; ".join(
            f"{name}: {', '.join(str(kept) for kept, _ in row)} of {row[0][1]}"
            for name, row in zip(names, ranks, strict=True)
        )
        maps.append(
            _figure(
                charts.heat_map(
                    f"ranks-{side}",
                    f"{side} directions kept per layer, budgets from {100 * budgets[0]:.3g} to "
                    f"{100 * budgets[-1]:.3g} %. {told}",
                    rows=names,
                    columns=[f"{100 * budget:.3g}" for budget in budgets],
                    values=[[kept / width for kept, width in row] for row in ranks],
                    labels=[[str(kept) for kept, _ in row] for row in ranks],
                    title=f"{side} directions kept",
                    xlabel="FLOPs budget, %",
                ),
                "the darker, the more was cut; grey: the side is whole",
            )
        )
    shown = data.headline_budget if data.headline_budget in plans else budgets[0]
    rows = [
        (
            layer.name,
            layer.form,
            f"{layer.input_rank} / {layer.in_channels}",
            f"{layer.output_rank} / {layer.out_channels}",
            f"{100 * layer.params[1] / layer.params[0]:.0f} %",
            f"{100 * layer.flops[1] / layer.flops[0]:.0f} %",
            f"{layer.predicted_loss:.2g}" if layer.form != "dense" else "",
            layer.note,
        )
        for layer in data.layers[shown]
    ]
    rows += [(name, "dense", "", "", "", "", "", reason) for name, reason in data.skipped.items()]
    return _section(
        "What each layer keeps",
        "A layer takes one of four forms: <em>dense</em>, as it was; <em>input</em> or <em>output</em>, one "
        "rotation and a smaller core; <em>both</em>, two rotations around the core. The cheapest that fits "
        "is chosen, layer by layer.",
        '<div class="pair">',
        *maps,
        "</div>",
        _html_table(
            f"Layers at {100 * shown:.3g} % of the FLOPs",
            "llrrrrrl",
            ("layer", "form", "inputs kept", "outputs kept", "parameters", "FLOPs", "predicted loss", "note"),
            rows,
        ),
    )


def _spectra(data: ReportData) -> str:
    if not data.spectra:
        return ""
    shown = data.spectra[:_MAX_SPECTRA]
    figures = []
    for number, s in enumerate(shown):
        sides = ((s.input_values, s.input_kept), (s.output_values, s.output_kept))
        told = (
            f"{s.name}: eigenvalues over the largest. Input side keeps {sum(s.input_kept)} of "
            f"{len(s.input_kept)}, output side {sum(s.output_kept)} of {len(s.output_kept)} directions."
        )
        figures.append(
            f"<figure>{charts.spectrum(f'spectrum{number}', told, title=s.name, sides=sides)}</figure>"
        )
    rest = len(data.spectra) - len(shown)
    more = f" The first {len(shown)} layers are drawn; {rest} more are not." if rest else ""
    return _section(
        "Eigenvalue spectra",
        "Eigenvalues of each layer's two Kronecker factors over the largest one, against the share of "
        f"directions, at {100 * data.headline_budget:.3g} % of the FLOPs. Filled dots are kept, open ones "
        "cut: a direction is kept for its score, which weighs the eigenvalue by the weights along it, so the "
        f"cut does not follow the spectrum alone.{more}",
        f"<p>{_key('warm', 'input factor A')} {_key('accent', 'output factor G')}</p>",
        '<div class="grid">',
        *figures,
        "</div>",
    )


def _losses(data: ReportData) -> str:
    sweep = [
        (m.budget, m.seed, m.predicted_loss, m.measured_loss)
        for m in data.measurements
        if m.budget < 1 and m.predicted_loss is not None and m.measured_loss is not None
    ]
    figures = []
    for name, title, predicted, measured in (
        (
            "loss-alone",
            "each layer cut alone",
            [p.predicted for p in data.alone],
            [p.measured for p in data.alone],
        ),
        ("loss-sweep", "the sweep over budgets, all seeds", [s[2] for s in sweep], [s[3] for s in sweep]),
    ):
        if not predicted:
            continue
        rho = rank_correlation(predicted, measured)
        below = sum(m <= 0 for m in measured)
        stated = "undefined" if math.isnan(rho) else f"{rho:.2f}"
        caption = f"Rank correlation (Spearman) {stated} over {len(predicted)} cuts."
        ratios = [m / p for p, m in zip(predicted, measured, strict=True) if p > 0]
        if ratios:
            caption += f" Measured over predicted, median: {median(ratios):.2g}."
        if below:
            caption += f" Open triangles: {below} cut{'s' if below > 1 else ''} that did not raise the loss."
        chart = charts.scatter(
            name,
            f"Measured against predicted increase of the training loss, {title}. {caption}",
            title=title,
            groups=[(predicted, measured)],
        )
        figures.append(_figure(chart, caption))
    if not figures:
        return ""
    details = ""
    if data.alone:
        details = (
            "<details><summary>Each cut in numbers</summary>"
            + _html_table(
                "Each layer cut alone",
                "llrr",
                ("layer", "cut", "predicted", "measured"),
                [(p.layer, p.cut, f"{p.predicted:.3g}", f"{p.measured:.3g}") for p in data.alone],
            )
            + "</details>"
        )
    return _section(
        "Predicted and measured loss",
        "The increase of the mean training loss that the factors predict for a cut, against the one measured "
        "when the cut is made and nothing else: no re-estimated statistics, no fine-tuning. On the dashed "
        "diagonal the two agree. The prediction is a second-order expansion: good at ranking cuts, and too "
        "low where the loss bends up faster than a parabola, as it does around a network with hardly any "
        "loss left.",
        '<div class="pair">',
        *figures,
        "</div>",
        details,
    )


def _settings(data: ReportData) -> str:
    if not data.settings:
        return ""
    items = "\n".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in data.settings.items()
    )
    return _section("How this was made", "Settings and provenance.", f'<dl class="settings">\n{items}\n</dl>')
