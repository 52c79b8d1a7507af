"""The stages of `benchmarks.cifar`. Each makes one file from those before it, whole or not at all.

    images.safetensors                          decode: all images, uint8
    NETWORK-seedS/trained.safetensors           train
    NETWORK-seedS/factors.safetensors           factors, with second moments
    NETWORK-seedS/VARIANT-BUDGET/cut.json       prune; cut.safetensors holds the network
    NETWORK-seedS/VARIANT-BUDGET/result.json    fine-tune and measure; tuned.safetensors holds the network
    NETWORK-seedS/VARIANT-BUDGET/latency.json   time, in turn with the network as it was trained

A variant is METHOD.SCORES.ALLOCATION as `ed.plan` names them; dense-1 is the network as it was trained.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import eigendamage_ext as ed
from benchmarks.accuracy import BN_IMAGES, MEAN, STD, measured
from benchmarks.cifar_settings import Settings
from benchmarks.stages import Stage, read_json, write_json
from eigendamage_ext import _devices
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.data import TensorLoader, crop_flip, load_jpegs, normalize
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.training import Checkpoint

IMAGES = "eigendamage-cifar-images"
EVAL_BATCH = 500
HOLD_OUT = 10  # every tenth training image is for validation
SECONDS_BETWEEN_CHECKPOINTS = 20.0
DENSE = "dense"


class Images(NamedTuple):
    """Normalised images ``(n, 3, 32, 32)`` on the device, channels last, and labels ``(n,)``."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Experiment:
    """A folder of files, and how each is made.

    Args:
        data: Folder that holds cifar10_jpeg.npz.
        out: Where the files go.
        settings: How everything is done.
        device: Where it is done.
        deadline: The ``time.monotonic()`` by which a training stops.
    """

    def __init__(
        self, data: Path, out: Path, settings: Settings, *, device: str, deadline: float | None
    ) -> None:
        self.data, self.out, self.settings, self.deadline = data, out, settings, deadline
        self.device = torch.device(device)
        self.autocast = torch.bfloat16 if self.device.type == "cuda" else None

    def stages(
        self, networks: Sequence[str], seeds: Sequence[int], variants: Sequence[str], budgets: Sequence[float]
    ) -> list[Stage]:
        """All that is to be made, in order."""
        found = [Stage("decode the images", self.out / "images.safetensors", 1e11, self._decode)]
        for seed in seeds:
            for network in networks:
                found += Cell(self, network, seed).stages(variants, budgets)
        return found

    def _decode(self) -> None:
        tensors = {}
        for split, count in (("train", self.settings.train_images), ("test", self.settings.test_images)):
            images, labels = load_jpegs(self.data / "cifar10_jpeg.npz", split, max_images=count)
            tensors[f"{split}.images"] = images.mul(255).round().to(torch.uint8)
            tensors[f"{split}.labels"] = labels
        write_tensors(self.out / "images.safetensors", tensors, {}, format=IMAGES)

    @cached_property
    def images(self) -> Images:
        """The images: of those to train on every tenth is held out."""
        tensors, _ = read_tensors(self.out / "images.safetensors", format=IMAGES)

        def prepared(split: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
            images, labels = (tensors[f"{split}.{part}"] for part in ("images", "labels"))
            if rows is not None:
                images, labels = images[rows], labels[rows]
            images = normalize(images.to(self.device).float().div(255), MEAN, STD)
            return images.contiguous(memory_format=torch.channels_last), labels.to(self.device)

        held_out = torch.arange(len(tensors["train.labels"])) % HOLD_OUT == 0
        return Images(prepared("train", ~held_out), prepared("train", held_out), prepared("test"))

    def loader(self, part: tuple[Tensor, Tensor]) -> TensorLoader:
        """Batches in order."""
        return TensorLoader(*part, batch_size=EVAL_BATCH)


class Cell:
    """One network with one seed: everything in its folder."""

    def __init__(self, experiment: Experiment, network: str, seed: int) -> None:
        self.experiment, self.settings = experiment, experiment.settings
        self.network, self.seed = network, seed
        self.folder = experiment.out / f"{network}-seed{seed}"
        self.architecture = self.settings.networks[network]

    def stages(self, variants: Sequence[str], budgets: Sequence[float]) -> Iterator[Stage]:
        """What is to be made in this folder, in order."""
        s, label = self.settings, f"{self.network} seed {self.seed}"
        one = self.architecture.flops()
        epoch = one * (s.train_images or 50_000) * (1 - 1 / HOLD_OUT)  # going forward alone
        test, timing = one * (s.test_images or 10_000), one * sum(s.timing_batches) * (s.repeats + 1)

        def timed(what: str, variant: str, budget: float) -> Iterator[Stage]:
            if s.repeats:
                path, make = self._path(variant, budget, "latency.json"), partial(self._time, variant, budget)
                yield Stage(f"{what}, time", path, (1 + budget) * timing, make)

        path, work = self.folder / "trained.safetensors", 3 * epoch * self.architecture.epochs
        yield Stage(f"{label}: train", path, work, self._train, path.with_suffix(".checkpoint"))
        yield Stage(f"{label}: factors", self.folder / "factors.safetensors", 10 * epoch, self._factors)
        yield Stage(f"{label}: measure", self._path(DENSE, 1, "result.json"), test, self._measure_dense)
        yield from timed(f"{label}: dense", DENSE, 1)
        for variant, budget in product(variants, budgets):
            what = f"{label}: {variant} to {100 * budget:g} % of the FLOPs"
            at = partial(self._path, variant, budget)
            prune, tune = partial(self._prune, variant, budget), partial(self._finetune, variant, budget)
            yield Stage(f"{what}, prune", at("cut.json"), 3 * budget * test, prune)
            work = (3 * budget + 1) * epoch * s.finetune_epochs + budget * test
            yield Stage(f"{what}, fine-tune", at("result.json"), work, tune, at("tuned.checkpoint"))
            yield from timed(what, variant, budget)

    def _path(self, variant: str, budget: float, name: str) -> Path:
        return self.folder / f"{variant}-{budget:g}" / name

    def _new(self) -> nn.Module:
        """The network with the weights of its seed, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.architecture.build()
        device = self.experiment.device
        return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _load(self, path: Path) -> nn.Module:
        return ed.load(path, into=self._new()).eval()

    @property
    def _trained(self) -> nn.Module:
        return self._load(self.folder / "trained.safetensors")

    def _fit(self, function: Callable[..., Any], model: nn.Module, path: Path, **settings: Any) -> None:
        """Trains a model and writes it, and how its training went beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(
            path.with_suffix(".checkpoint"),
            seconds=SECONDS_BETWEEN_CHECKPOINTS,
            deadline=self.experiment.deadline,
        )
        loader = TensorLoader(
            *self.experiment.images.train,
            batch_size=self.settings.batch_size,
            shuffle=True,
            seed=self.seed,
            transform=crop_flip(),
        )
        history = function(
            model,
            loader,
            seed=self.seed,
            autocast=self.experiment.autocast,
            checkpoint=checkpoint,
            **settings,
        )
        write_json(path.with_suffix(".history.json"), history)
        ed.save(model, path)

    def _train(self) -> None:
        s, path = self.settings, self.folder / "trained.safetensors"
        epochs = self.architecture.epochs
        self._fit(ed.train, self._new(), path, epochs=epochs, lr=s.lr, weight_decay=s.weight_decay)

    def _factors(self) -> None:
        model, loader = self._trained, self.experiment.loader(self.experiment.images.train)
        factors = ed.estimate_factors(model, loader, seed=self.seed)
        factors.second_moments(model, loader)
        factors.save(self.folder / "factors.safetensors")

    def _asked(self, variant: str, budget: float) -> dict[str, Any]:
        names = (None,) * 3 if variant == DENSE else tuple(variant.split("."))
        words = dict(zip(("method", "scores", "allocation"), names, strict=True))
        return {"network": self.network, "seed": self.seed, **words, "budget": budget}

    def _accuracies(self, model: nn.Module) -> dict[str, float]:
        """On the test images, which is what is reported, and on those held out to choose settings by."""
        images, loader = self.experiment.images, self.experiment.loader
        return {
            "accuracy_tuned": ed.evaluate(model, loader(images.test), progress=True),
            "accuracy_validation": ed.evaluate(model, loader(images.validation)),
        }

    def _measure_dense(self) -> None:
        model = self._trained
        found = measure(model, self.experiment.images.test[0][:1])
        accuracies = self._accuracies(model)
        record = self._asked(DENSE, 1) | {"flops": found.flops, "params": found.params}
        record |= {"flops_kept": 1.0, "params_kept": 1.0}
        record |= dict.fromkeys(("accuracy", "accuracy_bn"), accuracies["accuracy_tuned"])
        path = self._path(DENSE, 1, "result.json")
        path.parent.mkdir(exist_ok=True)
        write_json(path, record | accuracies)

    def _prune(self, variant: str, budget: float) -> None:
        model = self._trained
        factors = ed.Factors.load(self.folder / "factors.safetensors")
        method, scores, allocation = variant.split(".")
        target = {"flops": budget}
        plan = ed.plan(model, factors, target=target, method=method, scores=scores, allocation=allocation)
        result = plan.apply(model)
        images, loader = self.experiment.images, self.experiment.loader
        order = torch.randperm(len(images.train[0]), generator=torch.Generator().manual_seed(0))
        calibration = TensorLoader(images.train[0][order[:BN_IMAGES]], batch_size=self.settings.batch_size)
        record = self._asked(variant, budget) | measured(result, loader(images.test), calibration)
        path = self._path(variant, budget, "cut.json")
        path.parent.mkdir(exist_ok=True)
        result.save(path.with_suffix(".safetensors"))
        write_json(path, record)

    def _finetune(self, variant: str, budget: float) -> None:
        s, path = self.settings, partial(self._path, variant, budget)
        model, tuned = self._load(path("cut.safetensors")), path("tuned.safetensors")
        self._fit(
            ed.finetune, model, tuned, epochs=s.finetune_epochs, lr=s.finetune_lr, teacher=self._trained
        )
        write_json(path("result.json"), read_json(path("cut.json")) | self._accuracies(model.eval()))

    def _time(self, variant: str, budget: float) -> None:
        models = [self._trained]
        if variant != DENSE:
            models.append(self._load(self._path(variant, budget, "tuned.safetensors")))
        experiment, repeats = self.experiment, self.settings.repeats
        record: dict[str, Any] = {"device": _devices.name(str(experiment.device)), "ms": {}, "dense_ms": {}}
        for size in self.settings.timing_batches:
            batch = experiment.images.test[0][:size]
            times = _devices.milliseconds(models, batch, repeats, autocast=experiment.autocast)
            record["dense_ms"][str(size)], record["ms"][str(size)] = times[0], times[-1]
        write_json(self._path(variant, budget, "latency.json"), record)
