"""What a report tells, as plain numbers and names, and the figures that follow from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev


@dataclass(frozen=True)
class Measurement:
    """One network: the dense one of a seed (``budget=1``), or one cut to a fraction ``budget`` of its FLOPs.

    Attributes:
        accuracy_cut: accuracy in [0, 1] on held-out data before fine-tuning.
        accuracy: the same of the network that is handed over, after fine-tuning if there was any.
        params, flops: of the whole network, FLOPs per example as 2·MAC.
        milliseconds: time of one batch.
        predicted_loss, measured_loss: increase of the mean training loss by the cut alone, None if unknown.
    """

    seed: int
    budget: float
    accuracy_cut: float
    accuracy: float
    params: int
    flops: int
    milliseconds: float
    predicted_loss: float | None = None
    measured_loss: float | None = None


@dataclass(frozen=True)
class LayerCut:
    """What became of one layer: ranks per group, and ``(before, after)`` of what it costs."""

    name: str
    form: str
    input_rank: int
    output_rank: int
    in_channels: int
    out_channels: int
    params: tuple[int, int]
    flops: tuple[int, int]
    predicted_loss: float
    note: str = ""


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
        measurements: dense and pruned networks of every seed.
        layers: budget to the layers of its plan (of one seed).
        skipped: layer name to why no budget touches it.
        spectra: of the plan at ``headline_budget``.
        alone: each layer cut alone; the sweep over budgets is read from ``measurements``.
        settings: what was run, where and when, in the order to be shown.
    """

    title: str
    subtitle: str = ""
    headline_budget: float = 0.5
    measurements: Sequence[Measurement] = ()
    layers: Mapping[float, Sequence[LayerCut]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    spectra: Sequence[Spectrum] = ()
    alone: Sequence[LossPair] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """One row of the table: every seed's network at one budget, values in seed order."""

    budget: float
    accuracy_cut: tuple[float, ...]
    accuracy: tuple[float, ...]
    points_lost: tuple[float, ...]
    params: tuple[float, ...]
    params_kept: tuple[float, ...]
    flops: tuple[float, ...]
    flops_kept: tuple[float, ...]
    milliseconds: tuple[float, ...]
    speedup: tuple[float, ...]


def mean_sd(values: Sequence[float], digits: int = 1) -> str:
    """``"98.1 ± 0.3"``: mean and sample standard deviation; the mean alone if there is one value."""
    mean = f"{fmean(values):z.{digits}f}".replace("-", "−")
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def summarize(measurements: Iterable[Measurement]) -> list[Summary]:
    """One `Summary` per budget, the dense network first; each seed is compared with its own dense network."""
    by_budget: dict[float, dict[int, Measurement]] = {}
    for m in measurements:
        by_budget.setdefault(m.budget, {})[m.seed] = m
    dense = by_budget.get(1.0, {})
    rows = []
    for budget in sorted(by_budget, reverse=True):
        nets = [by_budget[budget][seed] for seed in sorted(by_budget[budget])]
        whole = [dense[m.seed] for m in nets]
        rows.append(
            Summary(
                budget=budget,
                accuracy_cut=tuple(100 * m.accuracy_cut for m in nets),
                accuracy=tuple(100 * m.accuracy for m in nets),
                points_lost=tuple(100 * (d.accuracy - m.accuracy) for m, d in zip(nets, whole, strict=True)),
                params=tuple(float(m.params) for m in nets),
                params_kept=tuple(m.params / d.params for m, d in zip(nets, whole, strict=True)),
                flops=tuple(float(m.flops) for m in nets),
                flops_kept=tuple(m.flops / d.flops for m, d in zip(nets, whole, strict=True)),
                milliseconds=tuple(m.milliseconds for m in nets),
                speedup=tuple(d.milliseconds / m.milliseconds for m, d in zip(nets, whole, strict=True)),
            )
        )
    return rows


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
    """One sentence with the figures measured at the headline budget, or "" if nothing was measured there."""
    rows = summarize(data.measurements)
    row = next((r for r in rows if r.budget == data.headline_budget), None)
    if row is None or row.budget == 1:
        return ""
    share = "half" if row.budget == 0.5 else f"{100 * row.budget:.3g} % of"
    gained = fmean(row.points_lost) < -0.05
    points = mean_sd([-p if gained else p for p in row.points_lost])
    sentence = (
        f"At {share} the FLOPs the fine-tuned network {'gains' if gained else 'loses'} {points} points of "
        f"accuracy ({fmean(rows[0].accuracy):.1f} → {fmean(row.accuracy):.1f} %), holds "
        f"{100 * fmean(row.params_kept):.0f} % of the parameters and runs {fmean(row.speedup):.2f} times as "
        "fast."
    )
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace(
        " ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
    )
