"""One network with one seed. Each of its files is made from those before it, whole or not at all.

    NETWORK-seedS/trained.json                   train; trained.safetensors holds the network
    NETWORK-seedS/factors-NEED.safetensors       estimate what methods score by
    NETWORK-seedS/dense/cut.json                 measure; then fine-tune as the pruned ones are
    NETWORK-seedS/MANNER/METHOD/BUDGET/cut.json  prune; cut.safetensors holds the network
    …/tuned-RATE.json                            fine-tune; tuned-RATE.safetensors holds the network
    …/result.json                                both, at the rate with the best validation accuracy
    …/latency.json                               time, in turn with the network as it was trained

MANNER is one-pass or N-rounds; in rounds there is a folder round-K for each, whose state.json tells the next
where it goes on from the fine-tuned network.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

import eigendamage_ext as ed
from benchmarks.accuracy import BN_IMAGES
from eigendamage_ext import _devices
from eigendamage_ext.data import TensorLoader, crop_flip
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.runs.stages import read_json, write_json
from eigendamage_ext.training import Checkpoint

from .asked import DENSE, Asked
from .images import Images, Part, evenly
from .settings import Finetuning, Training, arguments

if TYPE_CHECKING:
    from .experiment import Experiment

EVAL_BATCH = 250
SECONDS_BETWEEN_CHECKPOINTS = 20.0
NEAREST = re.compile(r'nearest reachable value is \{"\w+": ([^}]+)\}')
NOTHING = "nothing"
PASSES = {  # need -> the second pass over the data
    "ekfac": ed.Factors.second_moments,
    "diagonal": ed.Factors.diagonal,
    "gradient": ed.Factors.gradients,
}


class Cell:
    """One network with one seed: how the files in its folder are made."""

    def __init__(self, experiment: "Experiment", network: str, seed: int) -> None:
        self.experiment, self.settings = experiment, experiment.settings
        self.network, self.seed = network, seed
        self.folder = experiment.out / f"{network}-seed{seed}"
        self.architecture = self.settings.networks[network]

    def epochs(self, asked: Asked) -> int:
        """Of fine-tuning."""
        own = asked.pruning.epochs if asked.pruning else None
        return self.architecture.finetuning.epochs if own is None else own

    def factors(self, need: str) -> Path:
        """Where factors go."""
        return self.folder / f"factors-{need}.safetensors"

    def _new(self) -> nn.Module:
        """The network with the weights of its seed, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            data_set = self.experiment.data_set
            model = self.architecture.build(data_set.classes, data_set.shape[0])
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

    def train(self) -> None:
        """Trains the network, or takes trained weights."""
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

    @property
    def _calibration(self) -> TensorLoader:
        """What curvature is estimated from."""
        how = self.settings.factors
        return TensorLoader(*evenly(self._images.train, how.images), batch_size=how.batch_size)

    def estimate(self, need: str) -> None:
        """Estimates the factors that serve methods of a need."""
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
        factors.save(self.factors(need))

    def measure(self, asked: Asked) -> None:
        """Measures the network as it was trained."""
        model = self._trained
        cost = measure(model, self._images.test[0][:1])
        self._write(asked, model, {"flops": cost.flops, "params": cost.params})

    def prune(self, asked: Asked) -> None:
        """Cuts a network and measures what is left, or finds that it cannot be cut so far."""
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
        model, need = self._trained, need_of(asked.variant)
        factors = None if need == NOTHING else ed.Factors.load(self.factors(need))
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

    def tune(self, asked: Asked, rate: float) -> None:
        """Fine-tunes what is left; after the last rate, takes the best one."""
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
            epochs=self.epochs(asked),
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

    def time(self, asked: Asked) -> None:
        """Times the fine-tuned network in turn with the one it was cut from."""
        timing, folder = self.settings.timing, self.folder / asked.folder
        assert timing
        record: dict[str, Any] = {
            "device": _devices.name(str(self.experiment.device)),
            "ms": {},
            "dense_ms": {},
        }
        rate = read_json(folder / "result.json").get("lr")
        if rate is not None:
            models = [self._trained, self._load(folder / f"tuned-{rate:g}.safetensors")]
            for size in timing.batches:
                batch, autocast = self._images.test[0][:size], self.experiment.autocast
                times = _devices.milliseconds(models, batch, timing.repeats, autocast=autocast)
                record["dense_ms"][str(size)], record["ms"][str(size)] = times
        write_json(folder / "latency.json", record)


def need_of(variant: str) -> str:
    """What a method scores by."""
    if ".ekfac." in variant:
        return "ekfac"
    return METHODS[variant.partition(".")[0]].needs or NOTHING
