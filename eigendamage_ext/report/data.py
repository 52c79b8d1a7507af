"""What a report tells, as plain numbers and names, and the figures that follow from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from .words import mean_sd, speed


class Key(NamedTuple):
    """What tells networks apart that are not mere repetitions with another seed."""

    method: str
    budget: float


DENSE = Key("", 1.0)


@dataclass(frozen=True)
class Measurement:
    """One network: the dense one of a seed (``budget=1`` and no method), or one that was cut.

    Attributes:
        seed: Networks of one key and other seeds are repetitions; each is compared with its seed's dense one.
        budget: The fraction that was to be kept, or of the FLOPs that is.
        accuracy_cut: accuracy in [0, 1] on held-out data before fine-tuning; None if unknown.
        accuracy: the same of the network that is handed over, after fine-tuning if there was any.
        params, flops: of the whole network, FLOPs per example as 2·MAC.
        milliseconds: examples in a batch to the time it takes.
        predicted_loss, measured_loss: increase of the mean loss by the cut alone, None if unknown.
        method: How it was cut, where several ways are compared.
        label: What the budget is called; "" for its percentage.
    """

    seed: int
    budget: float
    accuracy_cut: float | None
    accuracy: float | None
    params: int
    flops: int
    milliseconds: Mapping[int, float] = field(default_factory=dict)
    predicted_loss: float | None = None
    measured_loss: float | None = None
    method: str = ""
    label: str = ""

    @property
    def key(self) -> Key:
        """Its method and budget."""
        return Key(self.method, self.budget)

    @property
    def name(self) -> str:
        """What its budget is called."""
        return self.label or ("dense" if self.key == DENSE else f"{100 * self.budget:.3g} %")


@dataclass(frozen=True)
class LayerCut:
    """What became of one layer; each pair is before and after.

    Attributes:
        name: Its name in the model.
        form: "dense", "input", "output", "both", "depthwise"; or "filters", of a plan that cuts those.
        inputs, outputs: directions of a group, or channels.
        params, flops: of the layer, FLOPs of one example as 2·MAC.
        predicted_loss: increase of the mean loss by this cut alone; None if none is predicted.
        note: why it was left alone, or how it was cut.
        group: the first of the layers whose filters go together; "" if they all stay.
    """

    name: str
    form: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    params: tuple[int, int]
    flops: tuple[int, int]
    predicted_loss: float | None = None
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of one layer's two factors, in any order, and which directions the cut keeps."""

    name: str
    input_values: Sequence[float]
    input_kept: Sequence[bool]
    output_values: Sequence[float]
    output_kept: Sequence[bool]


@dataclass(frozen=True)
class LossPair:
    """Predicted and measured increase of the loss when one layer alone is cut."""

    layer: str
    cut: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    Attributes:
        chosen: the network that the page is about; None for the smallest that was measured.
        measurements: dense and pruned networks of every seed.
        layers: the layers of every plan (of one seed).
        why: what decided over the chosen network's cuts, in a sentence or two.
        skipped: layer name to why no plan has it.
        spectra: of the chosen network's plan.
        alone: each layer cut alone; the other predicted and measured losses are in ``measurements``.
        settings: what was run, where and when, in the order to be shown.
    """

    title: str
    subtitle: str = ""
    chosen: Key | None = None
    measurements: Sequence[Measurement] = ()
    layers: Mapping[Key, Sequence[LayerCut]] = field(default_factory=dict)
    why: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    spectra: Sequence[Spectrum] = ()
    alone: Sequence[LossPair] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """One row of the table: every seed's network of one key, values in seed order.

    What was not measured for every one of them, and for its dense network where it is compared with that, is
    empty.

    Attributes:
        key, name: of the measurements.
        accuracy_cut, accuracy, points_lost: in percent.
        params, params_kept, flops, flops_kept: as numbers and as fractions of the dense network's.
        milliseconds, speedup: by the examples in a batch.
        predicted_loss, measured_loss: as in `Measurement`.
    """

    key: Key
    name: str
    accuracy_cut: tuple[float, ...]
    accuracy: tuple[float, ...]
    points_lost: tuple[float, ...]
    params: tuple[float, ...]
    params_kept: tuple[float, ...]
    flops: tuple[float, ...]
    flops_kept: tuple[float, ...]
    milliseconds: Mapping[int, tuple[float, ...]]
    speedup: Mapping[int, tuple[float, ...]]
    predicted_loss: tuple[float, ...]
    measured_loss: tuple[float, ...]

    @property
    def dense(self) -> bool:
        """Whether nothing was cut."""
        return self.key == DENSE


def _all(values: Iterable[float | None]) -> tuple[float, ...]:
    """The values, or none of them where one is missing."""
    given = tuple(values)
    present = tuple(value for value in given if value is not None)
    return present if len(present) == len(given) else ()


def summarize(measurements: Iterable[Measurement]) -> list[Summary]:
    """One `Summary` per key, the dense network first, then method by method, the largest first.

    Each seed is compared with its own dense network, or with the first if it has none.
    """
    by_key: dict[Key, dict[int, Measurement]] = {}
    for m in measurements:
        by_key.setdefault(m.key, {})[m.seed] = m
    dense = by_key.get(DENSE, {})
    methods = list(dict.fromkeys(key.method for key in by_key))
    rows = []
    for key in sorted(by_key, key=lambda k: (k != DENSE, methods.index(k.method), -k.budget)):
        nets = [by_key[key][seed] for seed in sorted(by_key[key])]
        first = next(iter(dense.values()), nets[0])
        pairs = [(m, dense.get(m.seed, first)) for m in nets]
        batches = [n for n in nets[0].milliseconds if all(n in m.milliseconds for m in nets)]
        compared = [n for n in batches if all(n in d.milliseconds for _, d in pairs)]
        accuracy, whole = _all(m.accuracy for m in nets), _all(d.accuracy for _, d in pairs)
        lost = zip(accuracy, whole, strict=True) if accuracy and whole else ()
        rows.append(
            Summary(
                key=key,
                name=nets[0].name,
                accuracy_cut=tuple(100 * a for a in _all(m.accuracy_cut for m in nets)),
                accuracy=tuple(100 * a for a in accuracy),
                points_lost=tuple(100 * (before - after) for after, before in lost),
                params=tuple(float(m.params) for m in nets),
                params_kept=tuple(m.params / d.params for m, d in pairs),
                flops=tuple(float(m.flops) for m in nets),
                flops_kept=tuple(m.flops / d.flops for m, d in pairs),
                milliseconds={n: tuple(m.milliseconds[n] for m in nets) for n in batches},
                speedup={n: tuple(d.milliseconds[n] / m.milliseconds[n] for m, d in pairs) for n in compared},
                predicted_loss=_all(m.predicted_loss for m in nets),
                measured_loss=_all(m.measured_loss for m in nets),
            )
        )
    return rows


def chosen_row(data: ReportData, rows: Sequence[Summary]) -> Summary | None:
    """The row of the network that the page is about."""
    pruned = [row for row in rows if not row.dense]
    if data.chosen is None:
        return min(pruned, key=lambda row: fmean(row.flops), default=None)
    return next((row for row in pruned if row.key == data.chosen), None)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, ties sharing their mean; NaN where one side is constant."""

    def ranks(values: Sequence[float]) -> list[float]:
        less = [sum(w < v for w in values) for v in values]
        same = [sum(w == v for w in values) for v in values]
        return [a + (b - 1) / 2 for a, b in zip(less, same, strict=True)]

    a, b = ranks(x), ranks(y)
    middle = (len(a) - 1) / 2
    covariance = sum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    scale = sum((p - middle) ** 2 for p in a) * sum((q - middle) ** 2 for q in b)
    return float(covariance / scale**0.5) if scale > 0 else float("nan")


def headline(data: ReportData) -> str:
    """One sentence with the figures of the chosen network, or "" if there is none."""
    rows = summarize(data.measurements)
    row = chosen_row(data, rows)
    if row is None or not rows[0].dense:
        return ""
    share = f"{100 * fmean(row.flops_kept):.0f} % of"
    share = "half" if share == "50 % of" else share
    tuned = row.accuracy_cut and row.accuracy_cut != row.accuracy
    parts = []
    if row.points_lost:
        gained = fmean(row.points_lost) < -0.05
        points = mean_sd([-p if gained else p for p in row.points_lost])
        parts.append(
            f"{'gains' if gained else 'loses'} {points} points of accuracy "
            f"({fmean(rows[0].accuracy):.1f} → {fmean(row.accuracy):.1f} %)"
        )
    parts.append(f"holds {100 * fmean(row.params_kept):.0f} % of the parameters")
    if row.speedup:
        parts.append(speed(fmean(row.speedup[max(row.speedup)])))
    told = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    sentence = f"At {share} the FLOPs the {'fine-tuned' if tuned else 'pruned'} network {told}."
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(
        " ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
    )
