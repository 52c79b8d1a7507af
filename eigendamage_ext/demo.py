"""The main job on real images: train, prune at six budgets, fine-tune, and show what it cost.

A wide ResNet learns scikit-learn's digits; its factors are collected once and serve every budget. All of it
happens once per seed, and each seed also draws another held-out split.
"""

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from . import _devices
from ._meter import Counted, Meter
from .curvature.estimate import estimate_factors
from .curvature.factors import Factors
from .data import Split, TensorLoader, digits
from .models.resnet import ResNet
from .pruning.direction_plan import DirectionPlan
from .pruning.forms import available
from .pruning.planning import plan as make_plan
from .report import (
    Key,
    LayerCut,
    LossPair,
    Measurement,
    ReportData,
    Spectrum,
    headline,
    mean_sd,
    summarize,
    write_report,
)
from .report.cuts import layer_cuts, spectra
from .report.provenance import environment
from .training import evaluate, finetune, mean_loss, recalibrate_bn, train

_EVAL_BATCH = 256


@dataclass(frozen=True)
class DemoSettings:
    """How much of everything; the defaults are the demo.

    Attributes:
        budgets: Fractions of the FLOPs to keep.
        shares: Fractions of a layer's directions kept on every side when it is cut alone.
        repeats: Timed batches per network; the median counts.
        train_examples: Use only so many of the training images, None for all.
    """

    seeds: int = 3
    device: str = "cpu"
    depth: int = 8
    widths: tuple[int, int, int] = (64, 128, 256)
    budgets: tuple[float, ...] = (0.8, 0.65, 0.5, 0.35, 0.25, 0.125)
    batch_size: int = 64
    epochs: int = 6
    lr: float = 0.05
    finetune_epochs: int = 3
    finetune_lr: float = 0.02
    fisher: str = "exact"
    shares: tuple[float, ...] = (0.9, 0.75, 0.5)
    timing_batch: int = 256
    repeats: int = 11
    train_examples: int | None = None


@dataclass(frozen=True)
class _Details:
    """What the report shows of one seed beyond its measurements."""

    layers: Mapping[float, Sequence[LayerCut]]
    skipped: Mapping[str, str]
    spectra: Sequence[Spectrum]
    alone: Sequence[LossPair]


def missing_requirement() -> str | None:
    """One sentence with the remedy if a library that only the demo needs is missing."""
    if importlib.util.find_spec("sklearn") is not None:
        return None
    return "demo: scikit-learn must be installed; run `pip install scikit-learn`"


def run_demo(
    settings: DemoSettings = DemoSettings(),
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ReportData:
    """Run the demo and write its report.

    Args:
        settings: How much of everything.
        output: Where the HTML page goes; None writes none.
        progress: Show a bar with the time left, or lines when standard error is no terminal.

    Returns:
        What the report shows: with the same settings, threads and machine the same numbers, times apart.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    start = time.monotonic()
    measurements: list[Measurement] = []
    details: list[_Details] = []
    losses: list[float] = []
    with Meter(_work(settings), enabled=progress) as meter:
        for seed in range(settings.seeds):
            run = _Seed(settings, seed, meter)
            measurements += run.measurements()
            losses.append(run.baseline)
            if not details:
                details.append(run.details())
    data = ReportData(
        title=f"ResNet-{settings.depth} on handwritten digits, pruned in the Kronecker-factored eigenbasis",
        subtitle=(
            "Networks were trained from scratch, cut to several budgets of FLOPs, given fresh batch-norm "
            "statistics and fine-tuned briefly with the dense network as teacher. Everything here was "
            "measured in one run on one machine."
        ),
        chosen=Key("", _headline_budget(settings)),
        measurements=measurements,
        layers={Key("", budget): layers for budget, layers in details[0].layers.items()},
        skipped=details[0].skipped,
        spectra=details[0].spectra,
        alone=details[0].alone,
        settings=_provenance(settings, losses, time.monotonic() - start),
    )
    if output is not None:
        write_report(output, data)
    return data


def print_table(data: ReportData, console: Console) -> None:
    """The measurements as a table, and the headline below it."""
    rows = summarize(data.measurements)
    seeds = len(rows[0].flops)
    table = Table(title=f"{data.title}\n{f'mean ± sd over {seeds} seeds' if seeds > 1 else 'one seed'}")
    table.add_column("FLOPs\nbudget", justify="right")
    for heading in (
        "accuracy, %\nbefore tuning",
        "accuracy, %\nfine-tuned",
        "parameters\nM",
        "FLOPs\nM",
        "time\nms per batch",
        "speed",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        (batch,) = row.milliseconds
        table.add_row(
            row.name,
            "" if row.dense else mean_sd(row.accuracy_cut),
            mean_sd(row.accuracy),
            f"{fmean(row.params) / 1e6:.3f}",
            f"{fmean(row.flops) / 1e6:.2f}",
            mean_sd(row.milliseconds[batch]),
            f"{fmean(row.speedup[batch]):.2f}×",
            end_section=row.dense,
        )
    console.print(table)
    console.print(headline(data), highlight=False)


class _Seed:
    """One seed: its data, its trained network and its factors."""

    def __init__(self, settings: DemoSettings, seed: int, meter: Meter) -> None:
        self.settings, self.seed, self.meter = settings, seed, meter
        self.label = f"seed {seed + 1} of {settings.seeds}"
        split = _normalized(digits(seed), settings)
        (self.x, self.y), (self.test_x, self.test_y) = split
        self.dense = self._trained()
        meter.stage(f"{self.label}: factors")
        self.factors = self._factors()
        self.baseline = self._train_loss(self.dense)
        self.plans: dict[float, DirectionPlan] = {}

    def _loader(self, batch_size: int, work: float, *, shuffle: bool = False) -> Counted:
        loader = TensorLoader(self.x, self.y, batch_size=batch_size, shuffle=shuffle, seed=self.seed)
        return Counted(loader, self.meter, work)

    def _trained(self) -> nn.Module:
        s = self.settings
        self.meter.stage(f"{self.label}: train")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: nn.Module = ResNet(s.depth, s.widths, num_classes=10, in_channels=1)
        model = model.to(device=s.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loader = self._loader(s.batch_size, 3, shuffle=True)
        train(model, loader, epochs=s.epochs, lr=s.lr, seed=self.seed, progress=False)
        return model.eval()

    def _factors(self) -> Factors:
        loader = self._loader(_EVAL_BATCH, _FACTOR_WORK)
        return estimate_factors(
            self.dense, loader, fisher=self.settings.fisher, seed=self.seed, progress=False
        )

    def _train_loss(self, model: nn.Module, budget: float = 1) -> float:
        return mean_loss(model, self._loader(_EVAL_BATCH, budget))

    def _accuracy(self, model: nn.Module) -> float:
        return evaluate(model, TensorLoader(self.test_x, self.test_y, batch_size=_EVAL_BATCH))

    def plan(self, flops: float) -> DirectionPlan:
        """The network's plan for a fraction of its FLOPs; 1 leaves every layer dense."""
        plan = make_plan(self.dense, self.factors, target={"flops": flops}, example_inputs=self.x[:1])
        assert isinstance(plan, DirectionPlan)
        return plan

    def measurements(self) -> list[Measurement]:
        """The dense network and every pruned one."""
        whole, accuracy = self.plan(1.0), self._accuracy(self.dense)
        dense = Measurement(self.seed, 1.0, accuracy, accuracy, whole.params_before, whole.flops_before)
        networks, rows = [self.dense], [dense]
        for budget in self.settings.budgets:
            self.meter.stage(f"{self.label}: {100 * budget:g} % of the FLOPs")
            model, row = self._pruned(budget)
            networks.append(model)
            rows.append(row)
        self.meter.stage(f"{self.label}: time")
        batch = self.x[: self.settings.timing_batch].contiguous(memory_format=torch.channels_last)
        times = _devices.milliseconds(networks, batch, self.settings.repeats)
        self.meter.advance(_timing_work(self.settings))
        return [
            replace(row, milliseconds={self.settings.timing_batch: time})
            for row, time in zip(rows, times, strict=True)
        ]

    def _pruned(self, budget: float) -> tuple[nn.Module, Measurement]:
        """The fine-tuned network of a budget, and its row but for the time."""
        s = self.settings
        self.plans[budget] = plan = self.plan(budget)
        result = plan.apply(self.dense)
        model = result.model
        measured = self._train_loss(model, budget) - self.baseline
        recalibrate_bn(model, self._loader(_EVAL_BATCH, budget))
        accuracy_cut = self._accuracy(model)
        finetune(
            model,
            self._loader(s.batch_size, 3 * budget + 1, shuffle=True),
            epochs=s.finetune_epochs,
            lr=s.finetune_lr,
            teacher=self.dense,
            seed=self.seed,
            progress=False,
        )
        return model, Measurement(
            seed=self.seed,
            budget=budget,
            accuracy_cut=accuracy_cut,
            accuracy=self._accuracy(model),
            params=result.params_after,
            flops=result.flops_after,
            predicted_loss=plan.predicted_loss,
            measured_loss=measured,
        )

    def details(self) -> _Details:
        """What only the first seed is asked for; after `measurements`."""
        self.meter.stage(f"{self.label}: each layer cut alone")
        return _Details(
            layers={budget: layer_cuts(plan.record()) for budget, plan in self.plans.items()},
            skipped=self.factors.skipped,
            spectra=spectra(self.plans[_headline_budget(self.settings)], self.factors),
            alone=list(self._alone()),
        )

    def _alone(self) -> Iterator[LossPair]:
        for name, spec in self.factors.specs.items():
            form = available(spec)[-1]
            for share in self.settings.shares if form != "dense" else ():
                plan = self.plan(1.0)
                ranks = [max(1, round(share * n)) for n in (spec.in_per_group, spec.out_per_group)]
                plan.set(name, form=form, input_rank=ranks[0], output_rank=ranks[1])
                measured = self._train_loss(plan.apply(self.dense).model) - self.baseline
                assert plan.predicted_loss is not None
                yield LossPair(name, f"{100 * share:g} % kept", plan.predicted_loss, measured)


def _normalized(split: Split, settings: DemoSettings) -> Split:
    """Zero mean and unit variance by the training part, on the settings' device."""
    (x, y), (test_x, test_y) = split
    x, y = x[: settings.train_examples], y[: settings.train_examples]
    mean, std = x.mean(), x.std()
    x, test_x = (((t - mean) / std).to(settings.device) for t in (x, test_x))
    return Split((x, y.to(settings.device)), (test_x, test_y.to(settings.device)))


def _headline_budget(settings: DemoSettings) -> float:
    return min(settings.budgets, key=lambda budget: abs(budget - 0.5))


# Work is counted in forward passes of the dense network over the training set.
_FACTOR_WORK = 10.0


def _timing_work(settings: DemoSettings) -> float:
    return (1 + sum(settings.budgets)) * (settings.repeats + 1) * settings.timing_batch / 1400


def _work(settings: DemoSettings) -> float:
    s = settings
    pruned = sum(2 * b + s.finetune_epochs * (3 * b + 1) for b in s.budgets)
    layers = s.depth - 1  # 3×3 convolutions
    per_seed = 3 * s.epochs + _FACTOR_WORK + 1 + pruned + _timing_work(s)
    return s.seeds * per_seed + layers * len(s.shares)


def _provenance(settings: DemoSettings, losses: Sequence[float], seconds: float) -> dict[str, str]:
    s = settings
    return {
        "network": f"ResNet, depth {s.depth}, widths {'/'.join(map(str, s.widths))}, projection shortcuts",
        "data": "scikit-learn's digits, 8×8 grey, a quarter held out, another split for each seed",
        "seeds": ", ".join(map(str, range(s.seeds))),
        "training": f"{s.epochs} epochs, batches of {s.batch_size}, SGD, learning rate {s.lr:g}, cosine",
        "training loss": ", ".join(f"{loss:.2g}" for loss in losses) + " (dense networks)",
        "factors": f"channel, Fisher {s.fisher}, all training images, once per seed",
        "fine-tuning": f"{s.finetune_epochs} epochs, learning rate {s.finetune_lr:g}, cosine, "
        "distilled from the dense network",
        "time": f"median of {s.repeats} interleaved batches of {s.timing_batch}, channels last, eval mode",
        **environment(s.device),
        "wall time": f"{seconds:.0f} s",
    }
