"""What a run prunes: the network as it came, its data, its cost; each is read when it is first asked for."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import _devices, training
from eigendamage_ext._files import weights_digest
from eigendamage_ext._random import seeded
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.pruning.measure import Measurement, measure
from eigendamage_ext.pruning.plan import Plan
from eigendamage_ext.pruning.planning import plan
from eigendamage_ext.runs.data import Loader, Loaders, examples, load_data
from eigendamage_ext.runs.directory import FIRST
from eigendamage_ext.runs.networks import load_network
from eigendamage_ext.runs.settings import Goal, Limits, Network, Pruned, Way
from eigendamage_ext.runs.stages import read_json, write_json

REPEATS = 11  # of a timing, of which the median counts
TIMED_BATCHES = (1, 64)


class Subject:
    """The network and the data of a run.

    Args:
        settings: Of the run.
        out: Its folder.
        caller: The command, for messages.
        progress: Show progress bars.
    """

    def __init__(self, settings: Pruned, out: Path, caller: str, *, progress: bool) -> None:
        if unusable := _devices.problem(settings.device):
            raise ValueError(f"{caller}: device must be usable here, {unusable}")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if torch.device(settings.device).type == "cuda":
            torch.backends.cudnn.deterministic = True
        self.settings, self.caller, self.progress = settings, caller, progress
        self.path = out / FIRST
        self.factors = lru_cache(maxsize=1)(Factors.load)
        self.plan = lru_cache(maxsize=1)(self._plan)

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return torch.device(self.settings.device)

    @property
    def autocast(self) -> torch.dtype | None:
        """As `estimate_factors` takes it."""
        half = self.settings.autocast
        return None if half == "none" else getattr(torch, half)

    @cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode."""
        out = self.path.parent.parent
        return network(self.settings, self.settings.seed, self.caller, out=out).to(self.device)

    @cached_property
    def data(self) -> Loaders:
        """The data."""
        with seeded(self.settings.seed, torch.device("cpu")):
            return load_data(self.settings, self.caller, progress=self.progress)

    @cached_property
    def example(self) -> Tensor:
        """The first input, ``(1, ...)``, on the device."""
        with seeded(self.settings.seed, torch.device("cpu")):
            batch = next(iter(self.data.calibration), None)
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor) or not len(x):
            raise ValueError(
                f"{self.caller}: data must be batches (input, target) of tensors, got {type(x).__name__} as "
                "the first input; let the factory say what goes into the network"
            )
        return x[:1].to(self.device)

    @cached_property
    def cost(self) -> Measurement:
        """What the network costs."""
        return measure(self.model, self.example)

    def work(self, loader: Loader | None) -> float:
        """FLOPs of a pass of the network over a loader, about."""
        return float(self.cost.flops * examples(loader, self.settings.batch_size))

    def accuracy(self, model: nn.Module) -> float | None:
        """On the test data; None where there are none."""
        test = self.data.test
        return None if test is None else training.evaluate(model, test, progress=self.progress)

    def loss(self, model: nn.Module) -> float:
        """Mean over the training data."""
        with seeded(self.settings.seed, self.device):
            return training.mean_loss(model, self.data.calibration, progress=self.progress)

    def measure_dense(self) -> None:
        """Writes what the network is before it is cut."""
        write_json(
            self.path,
            {
                "weights": weights_digest(self.model.state_dict()),
                "params": self.cost.params,
                "flops": self.cost.flops,
                "accuracy": self.accuracy(self.model),
                "loss": self.loss(self.model),
            },
        )

    def write_times(self, path: Path, networks: Sequence[nn.Module]) -> None:
        """Writes how long a pass of each network takes, in turn; first that of the one they come from."""
        found = {}
        for size in TIMED_BATCHES:
            batch = self.example.expand(size, *self.example.shape[1:]).contiguous()
            times = _devices.milliseconds([self.model, *networks], batch, REPEATS)
            found[str(size)] = [round(time, 4) for time in times]
        write_json(path, found)

    def _plan(self, goal: Goal, way: Way, factors: Path | None) -> Plan[Any]:
        """The plan for a goal, from a file of factors if the method needs any."""
        return planned(self, None if factors is None else self.factors(factors), goal, way)


def network(settings: Network, seed: int, caller: str, *, out: Path | None) -> nn.Module:
    """The network of the settings, in eval mode on the CPU.

    Args:
        settings: What it is.
        seed: Of a factory that draws weights.
        caller: The command, for messages.
        out: The folder of a run that it belongs to.

    Raises:
        ValueError: There is none, or it is not the one that the run began with.
    """
    with seeded(seed, torch.device("cpu")):
        model = load_network(settings, caller).eval()
    dense = None if out is None else out / FIRST
    if dense and dense.exists() and read_json(dense)["weights"] != weights_digest(model.state_dict()):
        raise ValueError(
            f"{caller}: model must be the one that the run in {out} began with, got one with other weights; "
            "choose another -o, or throw that run away with --start-over"
        )
    return model


def planned(subject: Subject, factors: Factors | None, goal: Goal, way: Way) -> Plan[Any]:
    """The plan for a goal."""
    return make_plan(
        subject.model, factors, goal, way, subject.settings, subject.settings.seed, subject.example
    )


def make_plan(
    model: nn.Module,
    factors: Factors | None,
    goal: Goal,
    way: Way,
    limits: Limits,
    seed: int,
    example: Tensor | None,
) -> Plan[Any]:
    """`plan` with the arguments of the settings."""
    return plan(
        model,
        factors,
        target=goal.target,
        **way._asdict(),
        ignored_layers=limits.ignored_layers,
        max_ratio=limits.max_ratio,
        round_to=limits.round_to,
        prune_head=limits.prune_head,
        damping=limits.damping,
        seed=seed,
        reference_compat=limits.reference_compat,
        example_inputs=example,
    )
