"""One network of a run: a budget and a method, from the plan to the tuned network.

    plan.json                   what becomes of every layer
    stages/cut.safetensors      the network as it was cut (net.safetensors if it is not tuned)
    stages/cut.json             what it costs and loses
    stages/tuning.safetensors   where its tuning is
    net.safetensors             the network
    result.json                 what it costs and how good it is

A stage reads what it needs from the files before it, in a run in one go as in one that was killed: so both
come to the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from eigendamage_ext import artifact, training
from eigendamage_ext._random import seeded
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.runs.events import Events
from eigendamage_ext.runs.settings import Goal, Way
from eigendamage_ext.runs.stages import Stage, read_json, write_json
from eigendamage_ext.runs.subject import Subject
from eigendamage_ext.training import Checkpoint

SECONDS_BETWEEN_CHECKPOINTS = 10.0
PLAN_WORK = 1e10  # FLOPs, about


@dataclass(frozen=True)
class Candidate:
    """A budget, a method and a folder.

    Attributes:
        subject: What is pruned.
        folder: Where its files go.
        goal: What is kept.
        way: How it is decided what is cut.
        factors: The file of factors that the method needs, if any.
        events: Where measurements are noted.
        name: Of the network, before the names of its stages; "" for the only one.
    """

    subject: Subject
    folder: Path
    goal: Goal
    way: Way
    factors: Path | None
    events: Events
    name: str = ""

    def stages(self) -> Iterator[Stage]:
        """Everything, in order."""
        subject, how = self.subject, self.subject.settings
        kept = 1 - self.goal.value if self.goal.measure == "ratio" else self.goal.value
        label = f"{self.name}: " if self.name else ""
        train, test = subject.work(subject.data.calibration), subject.work(subject.data.test)
        yield Stage(f"{label}plan", self.folder / "plan.json", PLAN_WORK, self.plan)
        yield Stage(f"{label}cut", self.folder / "stages/cut.json", kept * (2 * train + test), self.cut)
        if how.epochs:
            work = how.epochs * train * (3 * kept + how.distill)
            checkpoint = self.folder / "stages/tuning.safetensors"
            yield Stage(f"{label}fine-tune", self.net, work, self.tune, checkpoint)
        yield Stage(f"{label}measure", self.folder / "result.json", kept * test, self.measure)

    @property
    def net(self) -> Path:
        """The finished network."""
        return self.folder / "net.safetensors"

    @property
    def _cut_path(self) -> Path:
        return self.folder / "stages/cut.safetensors" if self.subject.settings.epochs else self.net

    def _load(self, path: Path) -> nn.Module:
        return artifact.load(path, into=self.subject.model).eval()

    def _result(self) -> PruneResult:
        """What the plan makes of the network.

        Raises:
            ValueError: The plan is not the one that was written.
        """
        plan = self.subject.plan(self.goal, self.way, self.factors)
        path = self.folder / "plan.json"
        if path.exists() and read_json(path) != _as_json(plan.record()):
            raise ValueError(
                f"{self.subject.caller}: {path} must be what the factors lead to, got another plan; it was "
                "edited, or made with other software: throw the run away with --start-over"
            )
        return plan.apply(self.subject.model)

    def result(self) -> PruneResult:
        """The finished network and its plan."""
        return replace(self._result(), model=self.network())

    def network(self) -> nn.Module:
        """The finished network."""
        return self._load(self.net)

    def plan(self) -> None:
        """Decides what is cut."""
        (self.folder / "stages").mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "plan.json", self.subject.plan(self.goal, self.way, self.factors).record())

    def cut(self) -> None:
        """Cuts the network, and measures what that alone costs and loses."""
        subject, result = self.subject, self._result()
        loss = subject.loss(result.model)
        if subject.settings.recalibrate_bn:
            with seeded(subject.settings.seed, subject.device):
                training.recalibrate_bn(result.model, subject.data.calibration, progress=subject.progress)
        found = {
            "params": result.params_after,
            "flops": result.flops_after,
            "predicted_loss": result.plan.predicted_loss,
            "loss": loss,
            "accuracy": subject.accuracy(result.model),
        }
        artifact.save(result, self._cut_path)
        self.events.add("measured", network=self.name, stage="cut", **found)
        write_json(self.folder / "stages/cut.json", found)

    def tune(self) -> None:
        """Fine-tunes the network."""
        subject, how = self.subject, self.subject.settings
        model = self._load(self._cut_path)
        training.finetune(
            model,
            subject.data.train,
            epochs=how.epochs,
            lr=how.lr,
            momentum=how.momentum,
            weight_decay=how.weight_decay,
            schedule=how.schedule,
            teacher=subject.model if how.distill else None,
            temperature=how.temperature,
            distillation=how.distillation,
            seed=how.seed,
            autocast=subject.autocast,
            checkpoint=NotedCheckpoint(self.folder / "stages/tuning.safetensors", self.events, self.name),
            progress=subject.progress,
        )
        artifact.save(replace(self._result(), model=model), self.net)

    def measure(self) -> None:
        """Measures how good the network is."""
        cut = read_json(self.folder / "stages/cut.json")
        tuned = self.subject.settings.epochs > 0
        found = cut | {
            "method": str(self.way),
            "target": self.goal.target,
            "accuracy_cut": cut["accuracy"],
            "accuracy": self.subject.accuracy(self.network()) if tuned else cut["accuracy"],
        }
        self.events.add("measured", network=self.name, stage="result", **found)
        write_json(self.folder / "result.json", found)


class NotedCheckpoint(Checkpoint):
    """A checkpoint that notes every epoch."""

    def __init__(self, path: Path, events: Events, name: str) -> None:
        super().__init__(path, seconds=SECONDS_BETWEEN_CHECKPOINTS)
        self.events, self.name = events, name

    def begin(self, state: Any, epochs: int) -> None:
        """Keeps the history that grows."""
        self.history = state.history
        super().begin(state, epochs)

    def after_epoch(self) -> None:
        """Notes the epoch, then writes the file if it is time to."""
        self.events.add("epoch", network=self.name, **self.history[-1])
        super().after_epoch()


def _as_json(record: Any) -> Any:
    return json.loads(json.dumps(record))
