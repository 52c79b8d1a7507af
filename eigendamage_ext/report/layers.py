"""The sections that go layer by layer: what each keeps, which filters go together, their spectra."""

from collections.abc import Mapping, Sequence
from html import escape

from . import charts
from .data import LayerCut, ReportData, Spectrum, Summary
from .markup import Cell, details, figure, legend, section, stroke, table
from .words import number, short

OPEN = 12  # spectra that are shown at once; the rest is a click away

_DIRECTIONS = (
    "A layer takes one of these forms: <em>dense</em>, as it was; <em>input</em> or <em>output</em>, one "
    "rotation and a smaller core; <em>both</em>, two rotations around the core{depthwise}. The cheapest that "
    "fits is chosen, layer by layer."
)
_DEPTHWISE = "; <em>depthwise</em>, two rotations around a depthwise core"
_FILTERS = (
    "A layer loses whole output filters, and with them the input channels of the layers that read them. "
    "Filters that a sum, a concatenation or a depthwise layer ties together are cut together."
)


def layers(data: ReportData, rows: Sequence[Summary], chosen: Summary | None) -> str:
    """What each layer keeps: of the chosen network in full, of the others at a glance."""
    plans = [(row, data.layers[row.key]) for row in rows if row.key in data.layers]
    shown = next((cuts for row, cuts in plans if row is chosen), next(iter(data.layers.values()), ()))
    if not shown and not data.skipped:
        return ""
    filters = any(cut.form == "filters" for cut in shown)
    depthwise = _DEPTHWISE if any(cut.form == "depthwise" for cut in shown) else ""
    words = _FILTERS if filters else _DIRECTIONS.format(depthwise=depthwise)
    words = f"{words} {escape(data.why)}".strip()
    parts = []
    if shown:
        of = f", {chosen.key.method} {chosen.name}" if chosen and len(plans) > 1 else ""
        parts += [_columns(shown), _table(f"Layers{of}", shown, filters)]
    if groups := _groups(shown):
        parts.append(table("Coupled layers", "llr", ("group", "layers", "filters kept"), groups))
    if len(plans) > 1:
        parts.append(_glance(plans))
    if data.skipped:
        skipped = list(data.skipped.items())
        made = table("Layers that no plan has", "ll", ("layer", "why"), skipped)
        many = len(skipped) > OPEN
        parts.append(details(f"{len(skipped)} layers that no plan has", made) if many else made)
    return section("What each layer keeps", words, *parts)


def _columns(cuts: Sequence[LayerCut]) -> str:
    """FLOPs of every layer before and after, as columns in the order of the network."""
    most = max(cut.flops[0] for cut in cuts) or 1
    bars = "".join(
        f'<i style="--whole:{100 * before / most:.3g}%;--after:{100 * after / most:.3g}%" '
        f'title="{escape(f"{place}. {cut.name}: {short(before)} → {short(after)} FLOPs")}"></i>'
        for place, cut in enumerate(cuts, start=1)
        for before, after in [cut.flops]
    )
    total = sum(cut.flops[0] for cut in cuts), sum(cut.flops[1] for cut in cuts)
    description = (
        f"FLOPs of {len(cuts)} layers before and after, in the order of the network: together "
        f"{short(total[0])} before and {short(total[1])} after; the largest before is "
        f"{max(cuts, key=lambda cut: cut.flops[0]).name} with {short(most)}."
    )
    entries = (
        legend(stroke("box before"), f"FLOPs of a layer before, at most {short(most)}"),
        legend(stroke("box after"), "after"),
    )
    chart = (
        f'<div style="max-width:{3 * len(cuts)}rem">'
        f'<div class="columns" role="img" aria-label="{escape(description)}">{bars}</div>'
        f'<div class="ends" aria-hidden="true"><span>1. {escape(_tail(cuts[0].name))}</span>'
        f"<span>{len(cuts)}. {escape(_tail(cuts[-1].name))}</span></div></div>"
    )
    return figure(chart, " ".join(entries))


def _table(caption: str, cuts: Sequence[LayerCut], filters: bool) -> str:
    def side(pair: tuple[int, int]) -> Cell:
        return Cell(f"{pair[1]} / {pair[0]}", bar=_share(pair))

    def cost(pair: tuple[int, int]) -> Cell:
        return Cell(f"{100 * pair[1] / pair[0]:.0f} %" if pair[0] else "", bar=_share(pair))

    losses = any(cut.predicted_loss is not None for cut in cuts)
    rows: list[list[str | Cell]] = []
    for cut in cuts:
        loss = "" if cut.form == "dense" or cut.predicted_loss is None else number(cut.predicted_loss, 2)
        rows.append(
            [
                cut.name,
                *([] if filters else [cut.form]),
                side(cut.inputs),
                side(cut.outputs),
                cost(cut.params),
                cost(cut.flops),
                *([loss] if losses else []),
                cut.note,
            ]
        )
    columns = [
        ("layer", "l", True),
        ("form", "l", not filters),
        ("inputs kept", "r", True),
        ("filters kept" if filters else "outputs kept", "r", True),
        ("parameters", "r", True),
        ("FLOPs", "r", True),
        ("predicted loss", "r", losses),
        ("note", "l", True),
    ]
    header = [name for name, _, there in columns if there]
    align = "".join(side for _, side, there in columns if there)
    return table(caption, align, header, rows, style="layers")


def _share(pair: tuple[int, int]) -> float | None:
    """What is left, if that is not all."""
    before, after = pair
    return None if before == after else after / before


def _groups(cuts: Sequence[LayerCut]) -> list[tuple[str, str, Cell]]:
    """Each group of several layers whose filters go together, and what it keeps of them."""
    members: dict[str, list[LayerCut]] = {}
    for cut in cuts:
        if cut.group:
            members.setdefault(cut.group, []).append(cut)
    return [
        (name, ", ".join(cut.name for cut in group), Cell(f"{after} / {before}", bar=_share((before, after))))
        for name, group in members.items()
        if len(group) > 1
        for before, after in [group[0].outputs]
    ]


def _glance(plans: Sequence[tuple[Summary, Sequence[LayerCut]]]) -> str:
    """All plans side by side: what a layer keeps in figures, what it saves as a tint."""
    several = len({row.key.method for row, _ in plans}) > 1
    by_name: list[Mapping[str, LayerCut]] = [{cut.name: cut for cut in cuts} for _, cuts in plans]
    names = dict.fromkeys(name for cuts in by_name for name in cuts)
    lines: list[list[str | Cell]] = [[name, *(_kept(cuts.get(name)) for cuts in by_name)] for name in names]
    heads = [f"{row.key.method}, {row.name}" if several else row.name for row, _ in plans]
    cut = {c.form == "filters" for _, cuts in plans for c in cuts if c.form != "dense"}
    directions = "Input · output directions kept"
    words = f"{directions}, or filters" if len(cut) == 2 else "Filters kept" if True in cut else directions
    made = table(
        f"{words}; the darker, the fewer FLOPs are left; whole layers are blank",
        "l" + "r" * len(plans),
        ["layer", *heads],
        lines,
        style="glance",
    )
    return made if len(names) <= OPEN else details("Every layer in every network", made)


def _kept(cut: LayerCut | None) -> Cell:
    if cut is None or cut.form == "dense":
        return Cell("")
    words = str(cut.outputs[1]) if cut.form == "filters" else f"{cut.inputs[1]} · {cut.outputs[1]}"
    return Cell(words, tint=1 - cut.flops[1] / cut.flops[0] if cut.flops[0] else 0)


def spectra(data: ReportData, chosen: Summary | None) -> str:
    """Eigenvalues of every layer's factors, and which directions are kept."""
    if not data.spectra:
        return ""
    figures = [_spectrum(spectrum) for spectrum in data.spectra]
    shown, rest = figures[:OPEN], figures[OPEN:]
    if len(rest) < 4:
        shown, rest = figures, []
    at = f" at {chosen.name}" if chosen and len(data.layers) > 1 else ""
    entries = (
        legend(charts.key(0), "output factor G"),
        legend('<span class="key s1" aria-hidden="true">●</span>', "input factor A"),
        legend('<span class="key" aria-hidden="true">·</span>', "small and pale: cut"),
    )
    return section(
        "Eigenvalue spectra",
        "Eigenvalues of each layer's two Kronecker factors over the largest one, from the largest to the "
        f"smallest{at}. A direction is kept for its score, which weighs the eigenvalue by the weights along "
        "it, so the cut does not follow the spectrum alone.",
        f'<p class="key-line">{" ".join(entries)}</p>',
        '<div class="grid">',
        *shown,
        "</div>",
        details(f"{len(rest)} more layers", '<div class="grid">', *rest, "</div>") if rest else "",
    )


def _spectrum(s: Spectrum) -> str:
    told = (
        f"{s.name}: eigenvalues over the largest. Input side keeps {sum(s.input_kept)} of "
        f"{len(s.input_kept)}, output side {sum(s.output_kept)} of {len(s.output_kept)} directions."
    )
    sides = ((s.output_values, s.output_kept), (s.input_values, s.input_kept))
    return figure(charts.spectrum(told, s.name, sides))


def _tail(name: str, most: int = 22) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
