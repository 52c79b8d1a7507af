"""What an experiment is: all that a TOML file states, checked before anything is done."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eigendamage_ext._tables import build, check_choice, read_toml
from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.settings import ALLOCATIONS, SCORES
from eigendamage_ext.training import SCHEDULES

from .images import DATA_SETS

NETWORKS = {"ResNet": ResNet, "PreResNet": PreResNet, "VGG": VGG}
AUTOCAST = {"none": None, "bfloat16": torch.bfloat16}
ROUNDS = ("constant-ratio", "linear", "cubic")


@dataclass(frozen=True)
class Data:
    """Which images.

    Attributes:
        name: One of `DATA_SETS`.
        folder: Where they lie, unless the command line says it.
        validation: Share of the training images that is held out to choose by, evenly spaced.
        train_images, test_images: Take only so many, evenly spaced; all if absent.
        mean, std: Of each channel; those of the training images if absent.
    """

    name: str
    folder: str = "data"
    validation: float = 0.1
    train_images: int | None = None
    test_images: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Training and test images taken at most."""
        return self.train_images, self.test_images

    def __post_init__(self) -> None:
        check_choice("name in [data]", self.name, DATA_SETS)
        if not 0 < self.validation < 1:
            raise ValueError(f"validation in [data] must lie between 0 and 1, got {self.validation}")


@dataclass(frozen=True)
class Training:
    """How a network is trained: by SGD with momentum 0.9, on crops and mirror images if `augment`."""

    epochs: int = 200
    lr: float = 0.1
    weight_decay: float = 2e-4
    schedule: str = "step"
    batch_size: int = 128
    augment: bool = True

    def __post_init__(self) -> None:
        check_choice("schedule in [training]", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Finetuning:
    """How a pruned network is trained on.

    Attributes:
        lr: One rate, or several of which the one with the best validation accuracy counts.
        images: On so many of the training images, evenly spaced; all if absent.
        teacher: Distil from the network as it was trained.
    """

    epochs: int = 150
    lr: tuple[float, ...] = (1e-3,)
    weight_decay: float = 1e-4
    schedule: str = "step"
    batch_size: int = 128
    augment: bool = True
    images: int | None = None
    teacher: bool = False

    def __post_init__(self) -> None:
        check_choice("schedule in [finetuning]", self.schedule, SCHEDULES)
        if not self.lr:
            raise ValueError("lr in [finetuning] must be a rate or a list of some, got none")


@dataclass(frozen=True)
class Network:
    """An architecture, and how it is trained and fine-tuned where that differs from the rest of the file.

    Attributes:
        weights: A safetensors file of trained weights in the folder of the images; trained here if absent.
        shortcut: Of a ResNet: "A" pads, "B" projects.
    """

    kind: str
    depth: int
    widths: tuple[int, ...]
    shortcut: str | None = None
    weights: str | None = None
    training: Training = Training()
    finetuning: Finetuning = Finetuning()

    def __post_init__(self) -> None:
        check_choice("kind of a network", self.kind, NETWORKS)
        with torch.device("meta"):
            self.build(10, 3)

    def build(self, classes: int, channels: int) -> torch.nn.Module:
        """The network with new weights, drawn from PyTorch's generator."""
        more = {} if self.shortcut is None else {"shortcut": self.shortcut}
        return NETWORKS[self.kind](self.depth, self.widths, num_classes=classes, in_channels=channels, **more)


@dataclass(frozen=True)
class Factors:
    """How curvature is estimated: from so many training images (all if absent), evenly spaced."""

    fisher: str = "mc"
    samples: int = 1
    images: int | None = None
    batch_size: int = 128


@dataclass(frozen=True)
class Timing:
    """How long a forward pass of so many images takes: the median of so many passes."""

    batches: tuple[int, ...] = (1,)
    repeats: int = 31


class Cut(NamedTuple):
    """What is asked of a method."""

    measure: str
    value: float

    def __str__(self) -> str:
        return f"{self.measure}-{self.value:g}"

    @property
    def kept(self) -> float:
        """The share that is left."""
        return 1 - self.value if self.measure == "ratio" else self.value


@dataclass(frozen=True)
class Pruning:
    """Methods and budgets, in one pass or in rounds.

    Attributes:
        methods: Names of methods, "all" for every one there is; METHOD.SCORES.ALLOCATION for other than the
            paper's scores and allocation.
        ratio, flops, params: Budgets as `ed.plan` takes them. In rounds, a ratio is that of every round.
        steps: Rounds of pruning and fine-tuning.
        schedule: How a budget of FLOPs or parameters is spread over the rounds.
        max_ratio: At most this share of a side is cut at once.
        epochs: Of fine-tuning after each cut; those of [finetuning] if absent.
    """

    methods: tuple[str, ...] = ("all",)
    ratio: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    params: tuple[float, ...] = ()
    steps: int = 1
    schedule: str = "constant-ratio"
    max_ratio: float = 0.95
    epochs: int | None = None

    def __post_init__(self) -> None:
        check_choice("schedule in [[pruning]]", self.schedule, ROUNDS)
        for name in self.methods:
            method, *more = name.split(".")
            check_choice("methods in [[pruning]]", method, ["all", *METHODS])
            if more and len(more) != 2:
                raise ValueError(
                    f"methods in [[pruning]] must be METHOD or METHOD.SCORES.ALLOCATION, got {name!r}"
                )
            for part, known in zip(more, (SCORES, ALLOCATIONS), strict=False):
                check_choice(f"methods in [[pruning]], {name!r},", part, known)
        if not self.cuts:
            raise ValueError("[[pruning]] must have budgets: ratio, flops or params, got none of them")
        if self.steps < 1:
            raise ValueError(f"steps in [[pruning]] must be at least 1, got {self.steps}")

    @property
    def name(self) -> str:
        """Also that of its folder."""
        return "one-pass" if self.steps == 1 else f"{self.steps}-rounds"

    @property
    def cuts(self) -> list[Cut]:
        """Every budget."""
        return [
            Cut(measure, value)
            for measure in ("ratio", "flops", "params")
            for value in getattr(self, measure)
        ]

    @property
    def variants(self) -> list[str]:
        """Every method, with "all" spelled out."""
        names = [n for name in self.methods for n in (METHODS if name == "all" else [name])]
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Settings:
    """A file: networks by name, and what is done to each with every seed."""

    data: Data
    networks: dict[str, Network]
    pruning: tuple[Pruning, ...]
    factors: Factors = Factors()
    timing: Timing | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cuda"
    autocast: str = "none"

    def __post_init__(self) -> None:
        check_choice("autocast", self.autocast, AUTOCAST)
        if not self.networks or not self.pruning:
            raise ValueError("[networks.NAME] and [[pruning]] must stand in the file, got none of one")
        known: dict[str, Any] = {}
        for pruning in self.pruning:
            if known.setdefault(pruning.name, _manner(pruning)) != _manner(pruning):
                raise ValueError(
                    f"[[pruning]] of as many steps must have the same schedule, max_ratio and epochs, got "
                    f"{_manner(pruning)} and {known[pruning.name]}; put them into two files"
                )

    def record(self, device: str) -> dict[str, Any]:
        """What makes a folder's files what they are, as JSON gives it back; which are made is left out."""
        whole: dict[str, Any] = {"device": torch.device(device).type, "torch": torch.__version__}
        whole |= {"autocast": self.autocast, "data": asdict(self.data), "factors": asdict(self.factors)}
        whole["timing"] = asdict(self.timing) if self.timing else None
        del whole["data"]["folder"]
        whole |= {f"network {name}": asdict(network) for name, network in self.networks.items()}
        whole |= {pruning.name: _manner(pruning) for pruning in self.pruning}
        found: dict[str, Any] = json.loads(json.dumps(whole))
        return found


def _manner(pruning: Pruning) -> dict[str, Any]:
    return {name: getattr(pruning, name) for name in ("schedule", "max_ratio", "epochs")}


def read(path: Path) -> Settings:
    """Reads an experiment.

    Raises:
        ValueError: The file is missing or no TOML, or a key or a value of it is wrong.
    """
    table = read_toml(path, caller="paper")
    try:
        networks = table.get("networks")
        for name, kind in (("training", Training), ("finetuning", Finetuning)):
            common = table.pop(name, {})
            build(kind, common, f"[{name}]")
            for network in networks.values() if isinstance(networks, dict) else ():
                if isinstance(network, dict) and isinstance(network.get(name, {}), dict):
                    network[name] = common | network.get(name, {})
        return build(Settings, table, "the file", also=("training", "finetuning"))
    except ValueError as error:
        raise ValueError(f"paper: {path.name}: {error}") from error


def arguments(variant: str) -> dict[str, str]:
    """A method, or METHOD.SCORES.ALLOCATION, as arguments of `ed.plan`."""
    return dict(zip(("method", "scores", "allocation"), variant.split("."), strict=False))
