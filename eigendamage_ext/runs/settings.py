"""All that a run depends on: the keys of its configuration, which are the options of the command line too.

Nothing here imports torch. Each group is a section of --help; names are those of `prune`, `finetune` and
`load_dataset`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from eigendamage_ext._tables import check_choice
from eigendamage_ext.pruning.allocation import MEASURES, parse_target

METHODS = (
    "eigendamage",
    "eigendamage-depthwise",
    "c-obd",
    "c-obs",
    "kron-obd",
    "kron-obs",
    "nn-slimming",
    "l1",
    "taylor",
    "random",
)
SCORES = ("kfac", "ekfac")
ALLOCATIONS = ("threshold", "least_loss")
FISHERS = ("mc", "exact", "empirical")
WEIGHT_SHARINGS = ("expand", "reduce")
SCHEDULES = ("cosine", "step", "constant")
AUTOCASTS = ("none", "bfloat16", "float16")


def _option(
    help: str, default: Any = None, *, known: Iterable[str] = (), short: str = "", name: str = ""
) -> Any:
    """A field: what it is, and its default; `name` is what its value is called in --help."""
    return field(
        default=default, metadata={"help": help, "known": tuple(known), "short": short, "name": name}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Some settings; each group says in `_check` what it wants of its values."""

    def __post_init__(self) -> None:
        for kind in type(self).__mro__:
            if check := vars(kind).get("_check"):
                check(self)
        for name, known in choices(type(self)):
            check_choice(name, getattr(self, name), known)

    def record(self) -> dict[str, Any]:
        """As JSON gives it back."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """The network."""

    model: str = _option(
        "package.module:factory, called without arguments (the current folder is searched, too); a network "
        "saved by eigendamage_ext; or resnet, preresnet or vgg, in the sizes of its weights",
        MISSING,
        name="NETWORK",
    )
    weights: str | None = _option(
        "safetensors file: a state_dict, or a network saved by eigendamage_ext", name="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """The data."""

    data: str = _option(
        "folder with train and test (or val), each with a folder of images for each class; cifar10:DIR, "
        "cifar100:DIR, tiny-imagenet:DIR or mnist:DIR; digits; or package.module:factory, which returns "
        "(train, test), each a loader of (input, target) or a pair of tensors, test also None",
        MISSING,
        name="DATA",
    )
    mean: tuple[float, ...] | None = _option(
        "of each channel, subtracted from images; that of the training images"
    )
    std: tuple[float, ...] | None = _option("of each channel, divides images; that of the training images")
    size: int | None = _option("images of folders are scaled to so many pixels a side", name="PIXELS")
    batch_size: int = _option("examples of a batch", 128)


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """What may be cut."""

    ignored_layers: tuple[str, ...] = _option(
        "names or globs of layers that stay as they are", (), short="--ignore", name="LAYER"
    )
    max_ratio: float = _option("at most this share of a side, or of a layer's filters, is cut", 0.95)
    round_to: int = _option("kept ranks and numbers of filters are multiples of this", 1)
    prune_head: bool = _option("cut directions of the layer that makes the logits, too", False)
    damping: float = _option("of c-obs and kron-obs", 0.01)
    reference_compat: bool = _option("score as the authors' implementation does, for comparison", False)

    def _check(self) -> None:
        if not 0 <= self.max_ratio <= 1:
            raise ValueError(f"max_ratio must lie in [0, 1], got {self.max_ratio}")
        if self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")


@dataclass(frozen=True, kw_only=True)
class Curvature(Settings):
    """What is estimated from the training data."""

    fisher: str = _option("labels of the gradients: drawn, expected, or given", "mc", known=FISHERS)
    samples: int = _option("labels drawn of each example", 1)
    weight_sharing: str = _option(
        "positions of an example one by one, or together", "expand", known=WEIGHT_SHARINGS
    )
    layers: tuple[str, ...] | None = _option(
        "names or globs of the only layers that are estimated", name="LAYER"
    )
    max_examples: int | None = _option("estimate from so many examples", name="N")
    offload: bool = _option("keep sums in the CPU's memory", False)


@dataclass(frozen=True, kw_only=True)
class Tuning(Settings):
    """What happens to the network after the cut."""

    recalibrate_bn: bool = _option("take the statistics of batch norm anew from the training data", True)
    epochs: int = _option("of fine-tuning", 0, name="N")
    lr: float = _option("learning rate at the start", 1e-3)
    momentum: float = _option("of SGD", 0.9)
    weight_decay: float = _option("of SGD", 1e-4)
    schedule: str = _option("of the learning rate", "cosine", known=SCHEDULES)
    distill: bool = _option("from the network as it was", False)
    temperature: float = _option("of distillation", 4.0)
    distillation: float = _option("share of distillation in the loss", 0.9)
    augment: bool = _option("tune on random crops and mirror images", False)

    def _check(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class Machine(Settings):
    """How it is computed."""

    seed: int = _option("of everything that is drawn", 0)
    device: str = _option("cpu, cuda, cuda:1, …", "cpu")
    autocast: str = _option(
        "half precision of estimation and, bfloat16 alone, of tuning", "none", known=AUTOCASTS
    )
    threads: int | None = _option("of PyTorch; as many as it takes", name="N")


class Way(NamedTuple):
    """How it is decided what is cut, as arguments of `plan`."""

    method: str = "eigendamage"
    scores: str = "kfac"
    allocation: str = "threshold"

    @classmethod
    def read(cls, text: str) -> "Way":
        """METHOD, or METHOD.SCORES.ALLOCATION."""
        parts = text.split(".")
        if len(parts) not in (1, 3):
            raise ValueError(f"methods must be METHOD or METHOD.SCORES.ALLOCATION, got {text!r}")
        return cls(*parts).checked()

    def checked(self) -> "Way":
        """Itself; a ValueError where a part of it is unknown."""
        for name, known in (("method", METHODS), ("scores", SCORES), ("allocation", ALLOCATIONS)):
            check_choice(name, getattr(self, name), known)
        return self

    def __str__(self) -> str:
        return self.method if self[1:] == Way()[1:] else ".".join(self)


class Goal(NamedTuple):
    """What is kept, or of units cut."""

    measure: str
    value: float

    def __str__(self) -> str:
        share = f"{100 * self.value:.10g} %"
        return f"{share} of units cut" if self.measure == "ratio" else f"{share} of {NAMES[self.measure]}"

    @property
    def target(self) -> dict[str, float]:
        """As `plan` takes it."""
        return {self.measure: self.value}


NAMES = {"flops": "FLOPs", "params": "parameters"}


def share(measure: str, given: Any) -> float:
    """A share, written as a number or in percent."""
    if isinstance(given, str):
        with suppress(ValueError):
            given = float(given)
    try:
        return parse_target({measure: given}).value
    except (ValueError, TypeError) as error:
        raise ValueError(str(error).removeprefix("plan: ").replace(f"target[{measure!r}]", measure)) from None


FLOPS, PARAMS, RATIO = (
    "kept of FLOPs, such as 50%",
    "kept of parameters",
    "cut of all directions or filters",
)


@dataclass(frozen=True, kw_only=True)
class Budget(Settings):
    """How much is kept: one of the three."""

    flops: float | str | None = _option(FLOPS, name="SHARE")
    params: float | str | None = _option(PARAMS, name="SHARE")
    ratio: float | str | None = _option(RATIO, name="SHARE")
    method: str = _option("what is cut, and what it is worth", "eigendamage", known=METHODS)
    scores: str = _option("of directions", "kfac", known=SCORES)
    allocation: str = _option("how a budget is spread over layers", "threshold", known=ALLOCATIONS)

    def _check(self) -> None:
        given = [measure for measure in MEASURES if getattr(self, measure) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of flops, params and ratio must be given, got {' and '.join(given) or 'none'}"
            )
        object.__setattr__(self, given[0], share(given[0], getattr(self, given[0])))

    @property
    def goal(self) -> Goal:
        """What is asked for."""
        [(measure, value)] = ((m, getattr(self, m)) for m in MEASURES if getattr(self, m) is not None)
        return Goal(measure, value)

    @property
    def way(self) -> Way:
        """How it is cut."""
        return Way(self.method, self.scores, self.allocation)


@dataclass(frozen=True, kw_only=True)
class Budgets(Settings):
    """How much is kept: one or several of each."""

    flops: tuple[float | str, ...] = _option(FLOPS, (), name="SHARE")
    params: tuple[float | str, ...] = _option(PARAMS, (), name="SHARE")
    ratio: tuple[float | str, ...] = _option(RATIO, (), name="SHARE")
    methods: tuple[str, ...] = _option(
        f"{', '.join(METHODS)}; METHOD.SCORES.ALLOCATION for others than kfac and threshold, as in "
        "eigendamage.ekfac.least_loss",
        ("eigendamage",),
        short="--method",
        name="METHOD",
    )

    def _check(self) -> None:
        for measure in MEASURES:
            values = tuple(share(measure, given) for given in getattr(self, measure))
            object.__setattr__(self, measure, tuple(dict.fromkeys(values)))
        if not self.goals:
            raise ValueError("one of flops, params and ratio must be given, got none")
        object.__setattr__(self, "methods", tuple(dict.fromkeys(map(str, map(Way.read, self.methods)))))

    @property
    def goals(self) -> list[Goal]:
        """What is asked for."""
        return [Goal(measure, value) for measure in MEASURES for value in getattr(self, measure)]

    @property
    def ways(self) -> list[Way]:
        """How it is cut."""
        return [Way.read(name) for name in self.methods]


@dataclass(frozen=True, kw_only=True)
class Pruned(Network, Data, Limits, Curvature, Tuning, Machine):
    """What any pruned network depends on besides its budget and method."""

    def _check(self) -> None:
        if self.epochs and self.autocast == "float16":
            raise ValueError("autocast must be bfloat16 or none where epochs are tuned, got 'float16'")


@dataclass(frozen=True, kw_only=True)
class PruneSettings(Budget, Pruned):
    """What `eigendamage prune` is told."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Budgets, Pruned):
    """What `eigendamage sweep` is told."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Budgets, Network, Limits):
    """What `eigendamage plan` is told."""

    seed: int = _option("of the method random", 0)


def choices(kind: type) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The fields that take one of some words, and these."""
    for entry in fields(kind):
        if known := entry.metadata.get("known"):
            yield entry.name, known
