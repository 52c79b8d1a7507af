"""What a file holds, as text: lines of facts above a table of layers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eigendamage_ext.cli.inspect.spectra import bars
from eigendamage_ext.pruning.table import change, short, table

Facts = Mapping[str, Any]

WHAT = {
    "model": "a model",
    "factors": "Kronecker factors",
    "plan": "a plan",
    "pruning": "a checkpoint of pruning in rounds",
    "training": "a checkpoint of training",
    "tensors": "tensors of another program",
}
MODEL = {"layer": "left", "kind": "left", "form": "left", "inputs": "right", "outputs": "right"} | {
    "parameters": "right",
    "FLOPs": "right",
    "predicted loss": "right",
}
SPECTRA = {"layer": "left", "kind": "left", "factor": "left", "size": "right", "trace": "right"} | {
    "effective rank": "right",
    "condition": "right",
    "eigenvalues": "left",
}
LONGEST_NAME = 80


def page(found: Facts) -> str:
    """The page of what `contents` gives; characters that a terminal would obey are written out."""
    lines = [f"{label:12}{printable(value)}" for label, value in _facts(found) if value]
    layers = found["layers"]
    if found["kind"] == "factors":
        spectra = [row for name, layer in layers.items() for row in _spectra(name, layer)]
        lines += ["", _filled(SPECTRA, spectra), ""]
    elif layers:
        totals = (
            "all",
            *[""] * 4,
            _cost(found, "params"),
            _cost(found, "flops"),
            _loss(found.get("plan", {})),
        )
        lines += ["", _filled(MODEL, [_row(name, layer) for name, layer in layers.items()], totals), ""]
    for note, names in _notes(found).items():
        lines.append(printable(f"{', '.join(map(_cut, names))}: {note}"))
    return "\n".join(lines).rstrip()


def printable(text: str) -> str:
    """The text with every character that is not seen, line breaks too, as its Python escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _facts(found: Facts) -> Iterator[tuple[str, str]]:
    yield "file", f"{found['path']}: {WHAT[found['kind']]}, {found['bytes']:,} bytes"
    version = f" {found['format_version']}" if "format_version" in found else ""
    sums = {True: ", checksum right", False: ", checksum not read (--check reads it)", None: ""}
    yield "format", f"{found['format']}{version}{sums[found.get('checksum_read')]}"
    yield "network", _network(found.get("network"))
    if "tensors" in found:
        yield "tensors", f"{found['tensors']:,}, {found['params']:,} parameters"
    yield "metadata", ", ".join(f"{key}: {value}" for key, value in found.get("metadata", {}).items())
    origin = found.get("provenance", {})
    yield "made by", _listed(origin, eigendamage_ext="eigendamage-ext {}", torch="PyTorch {}")
    yield "weights", origin.get("weights") or ""
    yield "parent", origin.get("parent") or ""
    yield "plan", _plan(found.get("plan", {}))
    yield "factors", _factors(found.get("factors", {}))
    if "steps" in found:
        yield "rounds", f"{len(found['history'])} of {found['steps']} done, {found['schedule']}"
    if "epochs" in found:
        yield "epochs", f"{len(found['history'])} of {found['epochs']} done"
    for entry in found.get("history", ()):
        yield "", ", ".join(f"{key} {_short(value)}" for key, value in entry.items() if value is not None)


def _network(network: Facts | None) -> str:
    if network is None:
        return ""
    if network["needs_class"]:
        return f"loads with ed.load(path, into=MyNet()) alone, as {network['reason']}"
    return f"{network['class']}, {network['modules']} modules; ed.load(path) needs no class"


def _plan(plan: Facts) -> str:
    target = ", ".join(f"{_short(value)} of {name}" for name, value in plan.get("target", {}).items())
    words = _listed(
        plan, method="{}", scores="{} scores", allocation="{}", predicted_loss="predicted loss {:.3g}"
    )
    return ", ".join(part for part in (words, target and f"target {target}") if part)


def _factors(settings: Facts) -> str:
    shape = "×".join(map(str, settings.get("example_shape", ())))
    words = _listed(
        settings,
        kind="{}",
        loss="{}",
        fisher="Fisher {}",
        weight_sharing="{}",
        autocast="autocast {}",
        count="{:,} examples",
        moments_count="second moments of {:,}",
        diagonal_count="diagonal of {:,}",
        gradient_count="gradients of {:,}",
        seed="seed {}",
    )
    return f"{words}, input {shape} {settings.get('example_dtype', '')}" if shape else words


def _listed(facts: Facts, **patterns: str) -> str:
    """The facts that are there, each in its words; counts of nothing are left out."""
    known = {key: facts.get(key) for key in patterns}
    return ", ".join(
        patterns[key].format(value)
        for key, value in known.items()
        if value is not None and not (value == 0 and key.endswith("_count"))
    )


def _notes(found: Facts) -> dict[str, list[str]]:
    """The layers of which something is to be said, by what that is."""
    notes: dict[str, list[str]] = {}
    said = [(name, layer.get("note")) for name, layer in found["layers"].items()]
    for name, note in (*said, *(found.get("skipped") or {}).items()):
        if note:
            notes.setdefault(note, []).append(name)
    return notes


def _row(name: str, layer: Facts) -> tuple[str, ...]:
    return (
        name,
        _kind(layer),
        layer.get("form") or "",
        _side(layer, 0),
        _side(layer, 1),
        _cost(layer, "params"),
        _cost(layer, "flops"),
        _loss(layer),
    )


def _kind(layer: Facts) -> str:
    return f"{layer.get('kind') or ''} {'×'.join(map(str, layer.get('kernel', ())))}".strip()


def _loss(layer: Facts) -> str:
    loss = layer.get("predicted_loss")
    return "" if loss is None else f"{loss:.3g}"


def _side(layer: Facts, side: int) -> str:
    """What a layer keeps of the directions or channels of a side."""
    kept, of = (layer.get(key, (None, None))[side] for key in ("ranks", "widths"))
    return "" if kept is None else f"{kept}" if kept == of or of is None else f"{kept}/{of}"


def _cost(layer: Facts, key: str) -> str:
    after, before = layer.get(key), layer.get(f"{key}_before")
    return "" if after is None else change(before or after, after) if before or after else "0"


def _spectra(name: str, layer: Facts) -> Iterator[tuple[str, ...]]:
    for factor, title, kind in (("A", name, _kind(layer)), ("G", "", "")):
        found = layer[factor]
        groups = f"{found['groups']}·" if found["groups"] > 1 else ""
        size = f"{groups}{found['size'] // found['groups']}"
        if found["trace"] is None:
            yield title, kind, factor, size, "", "", "", "holds NaN or infinite numbers"
            continue
        condition = "∞" if found["condition"] is None else f"{found['condition']:.3g}"
        effective = f"{found['effective_rank']:.1f}"
        yield title, kind, factor, size, f"{found['trace']:.3g}", effective, condition, bars(found["decades"])


def _filled(
    columns: Mapping[str, str], rows: Sequence[Sequence[str]], totals: Sequence[str] | None = None
) -> str:
    """The table without the columns in which no row has anything."""
    used = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    kept = {title: side for place, (title, side) in enumerate(columns.items()) if place in used}
    cells = [[_cut(printable(row[place])) for place in used] for row in rows]
    return table(kept, cells, totals and [totals[place] for place in used])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _short(value: Any) -> str:
    return short(value) if isinstance(value, int) else f"{value:.4g}"
