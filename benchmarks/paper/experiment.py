"""The stages of an experiment. Each makes one file from those before it, whole or not at all.

    NETWORK-seedS/trained.json                   train; trained.safetensors holds the network
    NETWORK-seedS/factors-NEED.safetensors       what methods score by
    NETWORK-seedS/dense/cut.json                 measure; then fine-tune as the pruned ones are
    NETWORK-seedS/MANNER/METHOD/BUDGET/cut.json  prune; cut.safetensors holds the network
    …/tuned-RATE.json                            fine-tune; tuned-RATE.safetensors holds the network
    …/result.json                                both, at the rate with the best validation accuracy

MANNER is one-pass or N-rounds; in rounds there is a folder round-K for each, whose state.json tells the next
where it goes on from the fine-tuned network.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from benchmarks.accuracy import BN_IMAGES
from benchmarks.stages import Stage, read_json, write_json
from eigendamage_ext.data import TensorLoader, crop_flip
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.training import Checkpoint

from .images import DATA_SETS, Images, Part, evenly, load
from .settings import AUTOCAST, Cut, Finetuning, Network, Pruning, Settings, Training, arguments

EVAL_BATCH = 250
SECONDS_BETWEEN_CHECKPOINTS = 20.0
NEAREST = re.compile(r'nearest reachable value is \{"\w+": ([^}]+)\}')
DENSE = "dense"
NOTHING = "nothing"
PASSES = {  # need -> the second pass over the data
    "ekfac": ed.Factors.second_moments,
    "diagonal": ed.Factors.diagonal,
    "gradient": ed.Factors.gradients,
}


class Experiment:
    """A folder of files, and how each is made.

    Args:
        settings: What is done.
        data: Folder of the images.
        out: Where the files go.
        device: Where it is done.
        deadline: The ``time.monotonic()`` by which a training stops.
    """

    def __init__(
        self, settings: Settings, data: Path, out: Path, *, device: str, deadline: float | None
    ) -> None:
        self.settings, self.data, self.out, self.deadline = settings, data, out, deadline
        self.device = torch.device(device)
        self.autocast = AUTOCAST[settings.autocast]
        self.images = cache(self._images)

    def stages(self, networks: Sequence[str], seeds: Sequence[int]) -> list[Stage]:
        """All that is to be made, in order."""
        return [
            stage for seed in seeds for network in networks for stage in Cell(self, network, seed).stages()
        ]

    def _images(self, seed: int) -> Images:
        data = self.settings.data
        return load(
            data.name,
            self.data,
            counts=(data.train_images, data.test_images),
            validation=data.validation,
            mean=data.mean,
            std=data.std,
            seed=seed,
            device=self.device,
        )


@dataclass(frozen=True)
class Asked:
    """A network after a cut, or a round of some.

    Attributes:
        pruning, variant, cut: What is asked for; the network as it was trained where there is none.
        step: Which round it is, from 1.
    """

    pruning: Pruning | None = None
    variant: str = DENSE
    cut: Cut | None = None
    step: int = 1

    @classmethod
    def all(cls, settings: Settings) -> Iterator["Asked"]:
        """Everything that is asked for, in order."""
        yield cls()
        for pruning in settings.pruning:
            for variant in pruning.variants:
                for cut in pruning.cuts:
                    for step in range(1, pruning.steps + 1):
                        yield cls(pruning, variant, cut, step)

    @property
    def budget(self) -> str:
        """In words."""
        if self.pruning is None or self.cut is None:
            return ""
        rounds = f", round {self.step}" if self.pruning.steps > 1 else ""
        return f"{self.cut.measure} {self.cut.value:g}{rounds}"

    @property
    def manner(self) -> str:
        """`Pruning.name`, or "dense"."""
        return self.pruning.name if self.pruning else DENSE

    @property
    def folder(self) -> Path:
        """Where its files go in the folder of a cell."""
        if self.pruning is None:
            return Path(DENSE)
        place = Path(self.pruning.name) / self.variant / str(self.cut)
        return place / f"round-{self.step}" if self.pruning.steps > 1 else place

    @property
    def before(self) -> Path:
        """The folder of the round before."""
        return self.folder.with_name(f"round-{self.step - 1}")

    @property
    def kept(self) -> float:
        """Share of the work that is left, about."""
        if self.pruning is None or self.cut is None:
            return 1.0
        return self.cut.kept ** (self.step if self.cut.measure == "ratio" else self.step / self.pruning.steps)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {"method": self.variant, "manner": self.manner}
        if self.cut is not None:
            found |= {"budget": self.cut.measure, "value": self.cut.value, "round": self.step}
        return found


class Cell:
    """One network with one seed: everything in its folder."""

    def __init__(self, experiment: Experiment, network: str, seed: int) -> None:
        self.experiment, self.settings = experiment, experiment.settings
        self.network, self.seed = network, seed
        self.folder = experiment.out / f"{network}-seed{seed}"
        self.architecture = self.settings.networks[network]
        self.data_set = DATA_SETS[self.settings.data.name]
        self._flops = flops(self.architecture, self.settings.data.name)

    def stages(self) -> Iterator[Stage]:
        """What is to be made in this folder, in order."""
        label, one, test = f"{self.network} seed {self.seed}", self._flops, self._count(1)
        path = self.folder / "trained.json"
        epochs = 0 if self.architecture.weights else self.architecture.training.epochs
        work = 1e10 + 3 * self._count(0) * epochs * one
        yield Stage(f"{label}: train", path, work, self._train, path.with_suffix(".checkpoint"))
        work = 8 * (self.settings.factors.images or self._count(0)) * one
        for need in dict.fromkeys(
            _need(v) for p in self.settings.pruning if p.steps == 1 for v in p.variants
        ):
            if need != NOTHING:
                make = partial(self._estimate, need)
                yield Stage(f"{label}: factors, {need}", self._factors(need), work, make)
        for asked in Asked.all(self.settings):
            what = f"{label}: {asked.variant}" + (f", {asked.budget}" if asked.budget else "")
            action, making = ("prune", self._prune) if asked.pruning else ("measure", self._measure)
            path = self.folder / asked.folder / "cut.json"
            yield Stage(f"{what}, {action}", path, 2 * asked.kept * test * one, partial(making, asked))
            yield from self._tunings(what, asked)

    def _tunings(self, what: str, asked: Asked) -> Iterator[Stage]:
        """Fine-tuning with each rate; the last one makes the result, too."""
        how, epochs, folder = self.architecture.finetuning, self._epochs(asked), self.folder / asked.folder
        seen = (3 * asked.kept + how.teacher) * (how.images or self._count(0)) * epochs
        work = (seen + asked.kept * self._count(1)) * self._flops
        for rate in how.lr:
            tuned = folder / f"tuned-{rate:g}.json"
            path, make = (
                folder / "result.json" if rate == how.lr[-1] else tuned,
                partial(self._tune, asked, rate),
            )
            yield Stage(f"{what}, fine-tune", path, work, make, tuned.with_suffix(".checkpoint"))

    def _epochs(self, asked: Asked) -> int:
        """Of fine-tuning."""
        own = asked.pruning.epochs if asked.pruning else None
        return self.architecture.finetuning.epochs if own is None else own

    def _count(self, part: int) -> int:
        """Images to train (0) or to test with (1)."""
        data = self.settings.data
        return (data.train_images, data.test_images)[part] or self.data_set.sizes[part]

    def _new(self) -> nn.Module:
        """The network with the weights of its seed, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.architecture.build(self.data_set.classes, self.data_set.shape[0])
        device = self.experiment.device
        return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _load(self, path: Path) -> nn.Module:
        return ed.load(path, into=self._new()).eval()

    @property
    def _images(self) -> Images:
        return self.experiment.images(self.seed if self.settings.data.name == "digits" else 0)

    @property
    def _trained(self) -> nn.Module:
        return self._load(self.folder / "trained.safetensors")

    def _fit(
        self, model: nn.Module, path: Path, how: Training | Finetuning, part: Part, **more: Any
    ) -> list[Any]:
        """Trains a model and writes it; returns how its training went."""
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(
            path.with_suffix(".checkpoint"),
            seconds=SECONDS_BETWEEN_CHECKPOINTS,
            deadline=self.experiment.deadline,
        )
        loader = TensorLoader(
            *part,
            batch_size=how.batch_size,
            shuffle=True,
            seed=self.seed,
            transform=crop_flip() if how.augment else None,
        )
        history = ed.train(
            model,
            loader,
            weight_decay=how.weight_decay,
            schedule=how.schedule,
            seed=self.seed,
            autocast=self.experiment.autocast,
            checkpoint=checkpoint,
            **more,
        )
        ed.save(model, path)
        return list(history)

    def _train(self) -> None:
        path, how = self.folder / "trained.safetensors", self.architecture.training
        model, history = self._new(), []
        if self.architecture.weights is None:
            history = self._fit(model, path, how, self._images.train, epochs=how.epochs, lr=how.lr)
        else:
            weights = self.experiment.data / self.architecture.weights
            if not weights.is_file():
                raise FileNotFoundError(
                    f"paper: weights must be a file in the data folder, got {weights}; put it there"
                )
            model.load_state_dict(load_file(weights))
            path.parent.mkdir(parents=True, exist_ok=True)
            ed.save(model, path)
        write_json(path.with_suffix(".json"), self._named({"epochs": history}))

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"network": self.network, "seed": self.seed} | record

    def _factors(self, need: str) -> Path:
        return self.folder / f"factors-{need}.safetensors"

    @property
    def _calibration(self) -> TensorLoader:
        """What curvature is estimated from."""
        how = self.settings.factors
        return TensorLoader(*evenly(self._images.train, how.images), batch_size=how.batch_size)

    def _estimate(self, need: str) -> None:
        model, how = self._trained, self.settings.factors
        factors = ed.estimate_factors(
            model,
            self._calibration,
            kind="patch" if need == "patch" else "channel",
            fisher=how.fisher,
            samples=how.samples,
            seed=self.seed,
        )
        if need in PASSES:
            PASSES[need](factors, model, self._calibration)
        factors.save(self._factors(need))

    def _measure(self, asked: Asked) -> None:
        model = self._trained
        cost = measure(model, self._images.test[0][:1])
        self._write(asked, model, {"flops": cost.flops, "params": cost.params})

    def _prune(self, asked: Asked) -> None:
        folder = self.folder / asked.folder
        folder.mkdir(parents=True, exist_ok=True)
        before = read_json(self.folder / asked.before / "result.json") if asked.step > 1 else {}
        if "nearest" in before:
            record = asked.record() | {"nearest": before["nearest"]}
            write_json(folder / "cut.json", self._named(record))
            return
        try:
            result = self._one_pass(asked) if asked.pruning.steps == 1 else self._round(asked)
        except ValueError as error:
            nearest = NEAREST.search(str(error))
            if nearest is None:
                raise
            record = asked.record() | {"nearest": float(nearest[1]) * self._found(asked)}
            write_json(folder / "cut.json", self._named(record))
            return
        found = {"flops": result.flops_after, "params": result.params_after}
        self._write(asked, result.model, found | {"predicted_loss": result.plan.predicted_loss})

    def _found(self, asked: Asked) -> float:
        """What is left of the network before a round."""
        if asked.cut is None or asked.step == 1:
            return 1.0
        return float(read_json(self.folder / asked.before / "result.json")[f"{asked.cut.measure}_kept"])

    def _one_pass(self, asked: Asked) -> ed.PruneResult:
        assert asked.pruning and asked.cut
        model, need = self._trained, _need(asked.variant)
        factors = None if need == NOTHING else ed.Factors.load(self._factors(need))
        plan = ed.plan(
            model,
            factors,
            target={asked.cut.measure: asked.cut.value},
            max_ratio=asked.pruning.max_ratio,
            seed=self.seed,
            example_inputs=self._images.train[0][:1],
            **arguments(asked.variant),
        )
        return plan.apply(model)

    def _round(self, asked: Asked) -> ed.PruneResult:
        """The next round, from where the one before was fine-tuned to."""
        assert asked.pruning and asked.cut
        cut, steps, how = asked.cut, asked.pruning.steps, self.settings.factors
        pruner = ed.Pruner(
            self._trained,
            self._calibration,
            target={cut.measure: 1 - cut.kept**steps if cut.measure == "ratio" else cut.value},
            steps=steps,
            schedule=asked.pruning.schedule,
            max_ratio=asked.pruning.max_ratio,
            fisher=how.fisher,
            samples=how.samples,
            seed=self.seed,
            progress=False,
            example_inputs=self._images.train[0][:1],
            **arguments(asked.variant),
        )
        if asked.step > 1:
            before = self.folder / asked.before
            rate = read_json(before / "result.json")["lr"]
            model = self._load(before / f"tuned-{rate:g}.safetensors")
            pruner.load_state_dict(read_json(before / "state.json") | {"model": model.state_dict()})
        step = next(iter(pruner))
        state = pruner.state_dict()
        del state["model"]
        write_json(self.folder / asked.folder / "state.json", state)
        return step.result

    def _write(self, asked: Asked, model: nn.Module, found: dict[str, Any]) -> None:
        """Measures a network without and with BN re-estimated, and writes it with the new statistics."""
        folder = self.folder / asked.folder
        folder.mkdir(parents=True, exist_ok=True)
        dense = read_json(self.folder / DENSE / "cut.json") if asked.pruning else found
        record = self._named(asked.record() | found)
        record |= {f"{key}_kept": found[key] / dense[key] for key in ("flops", "params")}
        record["accuracy"] = self._accuracy(model, self._images.test)
        images = self._images.train[0]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:BN_IMAGES]
        ed.recalibrate_bn(model, TensorLoader(images[order], batch_size=self.settings.factors.batch_size))
        record["accuracy_bn"] = self._accuracy(model, self._images.test)
        ed.save(model, folder / "cut.safetensors")
        write_json(folder / "cut.json", record)

    def _accuracy(self, model: nn.Module, part: Part) -> float:
        return ed.evaluate(model, TensorLoader(*part, batch_size=EVAL_BATCH))

    def _tune(self, asked: Asked, rate: float) -> None:
        folder, how = self.folder / asked.folder, self.architecture.finetuning
        cut, path = read_json(folder / "cut.json"), folder / f"tuned-{rate:g}.json"
        if "nearest" in cut:
            write_json(folder / "result.json" if rate == how.lr[-1] else path, cut)
            return
        model = self._load(folder / "cut.safetensors")
        history = self._fit(
            model,
            path.with_suffix(".safetensors"),
            how,
            evenly(self._images.train, how.images),
            epochs=self._epochs(asked),
            lr=rate,
            teacher=self._trained if how.teacher else None,
        )
        found = {
            "lr": rate,
            "accuracy_tuned": self._accuracy(model, self._images.test),
            "accuracy_validation": self._accuracy(model, self._images.validation),
            "epochs": history,
        }
        write_json(path, self._named(asked.record() | found))
        if rate == how.lr[-1]:
            tuned = [read_json(folder / f"tuned-{lr:g}.json") for lr in how.lr]
            best = max(tuned, key=lambda found: float(found["accuracy_validation"]))
            write_json(folder / "result.json", cut | best)


@cache
def flops(network: Network, data: str) -> int:
    """Of a network on one image of a data set."""
    data_set = DATA_SETS[data]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.build(data_set.classes, data_set.shape[0])(torch.empty(2, *data_set.shape))
    return counter.get_total_flops() // 2


def _need(variant: str) -> str:
    """What a method scores by."""
    if ".ekfac." in variant:
        return "ekfac"
    return METHODS[variant.partition(".")[0]].needs or NOTHING
