"""What an experiment is: all that a TOML file states, checked before anything is done."""

import difflib
import json
import tomllib
import types
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch

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


def _choice(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}")


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
        _choice("name in [data]", self.name, DATA_SETS)
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
        _choice("schedule in [training]", self.schedule, SCHEDULES)


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
        _choice("schedule in [finetuning]", self.schedule, SCHEDULES)
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
        _choice("kind of a network", self.kind, NETWORKS)
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
        _choice("schedule in [[pruning]]", self.schedule, ROUNDS)
        for name in self.methods:
            method, *more = name.split(".")
            _choice("methods in [[pruning]]", method, ["all", *METHODS])
            if more and len(more) != 2:
                raise ValueError(
                    f"methods in [[pruning]] must be METHOD or METHOD.SCORES.ALLOCATION, got {name!r}"
                )
            for part, known in zip(more, (SCORES, ALLOCATIONS), strict=False):
                _choice(f"methods in [[pruning]], {name!r},", part, known)
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
        _choice("autocast", self.autocast, AUTOCAST)
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
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"paper: --config must name a TOML file, got {path} ({error})") from error
    try:
        networks = table.get("networks")
        for name, kind in (("training", Training), ("finetuning", Finetuning)):
            common = table.pop(name, {})
            _build(kind, common, f"[{name}]")
            for network in networks.values() if isinstance(networks, dict) else ():
                if isinstance(network, dict) and isinstance(network.get(name, {}), dict):
                    network[name] = common | network.get(name, {})
        return _build(Settings, table, "the file")
    except ValueError as error:
        raise ValueError(f"paper: {path.name}: {error}") from error


def _build(kind: type, table: Any, where: str) -> Any:
    """A dataclass from a table."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table, got {table!r}")
    types_, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    extra = ["training", "finetuning"] if kind is Settings else []
    for key in (key for key in table if key not in known):
        nearest = difflib.get_close_matches(key, [*known, *extra], 1, cutoff=0.0)[0]
        raise ValueError(f"{where} must have known keys, got {key!r}; the nearest right one is {nearest!r}")
    missing = [
        name for name, f in known.items() if f.default is f.default_factory is MISSING and name not in table
    ]
    if missing:
        raise ValueError(
            f"{where} must have {' and '.join(map(repr, missing))}, got {', '.join(table) or 'nothing'}"
        )
    return kind(**{key: _value(types_[key], value, key, where) for key, value in table.items()})


def _value(kind: Any, value: Any, key: str, where: str) -> Any:
    """A value as its field has it."""
    if get_origin(kind) is types.UnionType:
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key!r} must be tables [{key}.NAME], got {value!r}")
        return {name: _build(get_args(kind)[1], table, f"[{key}.{name}]") for name, table in value.items()}
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        values = value if isinstance(value, list) else [value]
        if is_dataclass(part):
            return tuple(_build(part, table, f"[[{key}]]") for table in values)
        return tuple(_value(part, item, key, where) for item in values)
    if is_dataclass(kind):
        return _build(kind, value, f"[{key}]")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{key!r} in {where} must be of type {kind.__name__}, got {value!r}")
    return value


def arguments(variant: str) -> dict[str, str]:
    """A method, or METHOD.SCORES.ALLOCATION, as arguments of `ed.plan`."""
    return dict(zip(("method", "scores", "allocation"), variant.split("."), strict=False))
