"""Pruning in rounds: cut a little, train, estimate again, cut further."""

import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, adapter_record, qualified_name
from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext._progress import track
from eigendamage_ext._random import seeded
from eigendamage_ext._records import check_sizes, record
from eigendamage_ext.curvature.layers import as_patterns
from eigendamage_ext.curvature.state import check_model, device_of
from eigendamage_ext.pruning.allocation import Target, UnreachableError
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.pruning.pruner import prune
from eigendamage_ext.pruning.settings import Settings
from eigendamage_ext.pruning.structure import factored_layers, restored

FORMAT = "eigendamage-pruning"
PATTERNS = {"ignored_layers", "layers"}  # arguments whose parts have no order
FIXED = ("model", "loader", "target", "factors", "inplace")  # arguments of `prune` that are not passed on

SCHEDULES: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "constant-ratio": lambda kept, done: Fraction(float(kept) ** float(done)),
    "linear": lambda kept, done: 1 - (1 - kept) * done,
    "cubic": lambda kept, done: 1 - (1 - kept) * (1 - (1 - done) ** 3),
}


class _Saved(TypedDict):
    """What a file tells besides the tensors."""

    settings: dict[str, Any]
    weights: dict[str, str]
    costs: dict[str, int]
    history: tuple[dict[str, Any], ...]
    layers: dict[str, Any]
    training: tuple[str, ...]
    frozen: tuple[str, ...]


class _Costs(TypedDict):
    """What the original costs."""

    params: int
    flops: int


class _Round(TypedDict):
    """One record of a history."""

    round: int
    target: dict[str, float]
    params: int
    flops: int
    predicted_loss: float | None


def share_kept(kept: Fraction, done: Fraction, schedule: str) -> Fraction:
    """The share of the original that is left when a share s of the rounds is done.

    "constant-ratio" is f^s, where every round cuts the same share of what it finds; "linear" 1−(1−f)s;
    "cubic" 1−(1−f)(1−(1−s)³) (Zhu and Gupta 2017, arXiv 1710.01878), which cuts most in the first rounds.

    Args:
        kept: f, what is left in the end.
        done: s, in [0, 1].
        schedule: One of `SCHEDULES`.
    """
    return SCHEDULES[schedule](kept, done) if 0 < done < 1 else kept if done else Fraction(1)


@dataclass(frozen=True)
class Step:
    """A round that has been cut and may now be trained.

    Attributes:
        index: Its number, from 1.
        result: What it did to the model that it found.
    """

    index: int
    result: PruneResult

    @property
    def model(self) -> nn.Module:
        """What the round left: train it in place, the next round goes on from it."""
        return self.result.model


class Pruner:
    """Prunes in rounds; between them the caller trains what is left.

    Each round estimates again on the model as it finds it and cuts that. Targets are fractions of the
    original, which each round may cost at most; layers that were rebuilt before are cut at their core and get
    no deeper. The model handed in is never changed.

    ::

        pruner = Pruner(model, loader, target={"flops": 0.125}, steps=7, checkpoint="rounds.safetensors")
        for step in pruner:
            finetune(step.model, loader, epochs=20, checkpoint=Checkpoint(f"round{step.index}.safetensors"))
        pruner.result.save("small.safetensors")

    With a checkpoint, a process that was killed at any point and starts again with the same arguments and the
    same model comes to the same result: it repeats the round it was in and leaves the rest to the training's
    own checkpoint. For that a loader must repeat itself: each round begins at the same random numbers of
    PyTorch and, where the loader has a ``set_epoch``, in the epoch of its number.

    Args:
        model: The trained model.
        loader: As `prune` takes it; it is read anew in every round.
        target: As `plan` takes it: what is kept of the original in the end. Of a "ratio", the share of units
            cut, shares kept multiply: each round cuts some of the units that it finds, and those that
            max_ratio and round_to protect stay although they fall. The paper's seven rounds of 0.5 are
            ``target={"ratio": 1 - 0.5**7}, steps=7, max_ratio=0.5``.
        steps: How many rounds.
        schedule: "constant-ratio", "linear" or "cubic"; see `share_kept`.
        checkpoint: A file written before each round. If it exists, pruning goes on from there.
        arguments: What else `prune` takes, apart from factors and inplace.

    Attributes:
        steps: How many rounds.
        schedule: See `share_kept`.
        history: One record for each round: its number "round", its own "target", and the "params", "flops"
            and "predicted_loss" it led to.

    Raises:
        ValueError: An argument out of range, or a checkpoint of other settings or of another model.
        TypeError: An argument of the wrong type, or one that `prune` does not have.
        ArtifactError: A checkpoint that is damaged.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any] | None,
        *,
        target: Any,
        steps: int,
        schedule: str = "constant-ratio",
        checkpoint: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> None:
        check_model(model, caller="Pruner")
        known = {
            name: parameter.default
            for name, parameter in inspect.signature(prune).parameters.items()
            if name not in FIXED
        }
        if unknown := sorted(arguments.keys() - known.keys()):
            raise TypeError(
                f"Pruner: arguments must be some of {', '.join(known)}, got "
                f"{', '.join(unknown)}; leave it out"
            )
        for name in PATTERNS & arguments.keys():
            if arguments[name] is not None:
                arguments[name] = as_patterns(arguments[name])
        self._arguments = known | arguments
        checked = {field.name for field in fields(Settings)} & known.keys()
        self._goal = Settings(target=target, **{name: self._arguments[name] for name in checked}).goal
        if isinstance(loader, Iterator):
            raise TypeError(
                f"Pruner: loader must be readable in every round, got a {type(loader).__name__}, "
                "which is over after one pass; pass a DataLoader or a list of batches"
            )
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"Pruner: steps must be an integer, got {steps!r}")
        if steps < 1:
            raise ValueError(f"Pruner: steps must be at least 1, got {steps}")
        if schedule not in SCHEDULES:
            raise ValueError(f"Pruner: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        self.steps, self.schedule = steps, schedule
        self.history: list[dict[str, Any]] = []
        self._original, self._model, self._loader = model, model, loader
        self._costs: dict[str, int] = {}  # of the original
        self._shapes = _shapes(model)
        self._last: PruneResult | None = None
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._check_ratio()
        self._weights = {name: _digest(value) for name, value in _state(model).items()}
        if self._checkpoint is not None and self._checkpoint.exists():
            tensors, manifest = read_tensors(self._checkpoint, format=FORMAT)
            self._load(manifest | {"model": tensors}, str(self._checkpoint))

    @property
    def model(self) -> nn.Module:
        """The model as it is now."""
        return self._model

    @property
    def result(self) -> PruneResult:
        """From the original to where the last round led; its plan is that of the last round.

        Raises:
            ValueError: There has been no round.
        """
        if self._last is None:
            raise ValueError("Pruner.result: pruner must have made a round, got none; iterate over it first")
        return replace(self._last, params_before=self._costs["params"], flops_before=self._costs["flops"])

    def __iter__(self) -> Iterator[Step]:
        """The rounds that are left."""
        return track(
            self._rounds(),
            total=self.steps - len(self.history),
            description="rounds",
            enabled=self._arguments["progress"],
            outer=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the rounds to come depend on: a copy of the model's tensors under "model", else JSON."""
        tensors = {name: value.clone() for name, value in _state(self._model).items()}
        return self._record() | {"model": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; `result` is there after the next round.

        Raises:
            ValueError: It is of other settings or of another model; nothing has been changed then.
        """
        self._load(state, "state")

    def _record(self) -> dict[str, Any]:
        """The state but for tensors."""
        modes = {name: module.training for name, module in self._model.named_modules()}
        flags = {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}
        return {
            "settings": self._settings(),
            "weights": self._weights,
            "costs": self._costs,
            "history": [dict(done) for done in self.history],
            "layers": factored_layers(self._model),
            "training": [name for name, training in modes.items() if training],
            "frozen": [name for name, flag in flags.items() if not flag],
        }

    def _load(self, state: Mapping[str, Any], origin: str) -> None:
        if missing := sorted({*self._record(), "model"} - state.keys()):
            raise ArtifactError(f"Pruner: {origin} must be what state_dict gives, got none of {missing}")
        try:
            saved = record(_Saved, {name: value for name, value in state.items() if name != "model"})
            history = _checked_history(saved, self.steps)
        except ValueError as error:
            raise ArtifactError(
                f"Pruner: {origin} must be what state_dict gives, got something else ({error}); start anew "
                "without it"
            ) from error
        for what, ours, theirs in (
            ("settings", self._settings(), saved["settings"]),
            ("original model", self._weights, saved["weights"]),
        ):
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            if names:
                found = [
                    f"{name} {str(theirs.get(name))[:60]} in place of {ours.get(name)}" for name in names[:3]
                ]
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ValueError(
                    f"Pruner: {origin} must be of the same {what}, got {', '.join(found)}{more}; pass the "
                    "same, or start anew without it"
                )
        model = restored(self._original, saved["layers"], state["model"])
        for name, module in model.named_modules():
            module.training = name in saved["training"]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in saved["frozen"])
        self._model, self._shapes, self._last = model, _shapes(model), None
        self._costs, self.history = dict(saved["costs"]), history

    def _settings(self) -> dict[str, Any]:
        """What must be the same for the result to be; how it is shown and where sums are kept need not."""
        target = {self._goal.measure: self._goal.value}
        return {"target": target, "steps": self.steps, "schedule": self.schedule} | {
            name: sorted(_plain(value)) if name in PATTERNS and value else _plain(value)
            for name, value in self._arguments.items()
            if name not in ("progress", "offload")
        }

    def _rounds(self) -> Iterator[Step]:
        while len(self.history) < self.steps:
            yield self._round(len(self.history) + 1)

    def _round(self, index: int) -> Step:
        changed = sorted(dict(_shapes(self._model).items() ^ self._shapes.items()))
        if changed:
            raise ValueError(
                "Pruner: model must keep the shapes and dtypes that it had before it was trained, got "
                f"another {changed[0]!r} before round {index}; train step.model in place"
            )
        if self._checkpoint is not None:
            write_tensors(self._checkpoint, _state(self._model), self._record(), format=FORMAT)
        target = self._target(index)
        set_epoch = getattr(self._loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(index - 1)
        try:
            with seeded(self._arguments["seed"], device_of(self._model)):
                result = prune(self._model, self._loader, target=target, **self._arguments)
        except UnreachableError as error:
            raise UnreachableError(f"Pruner: round {index} of {self.steps}: {error}") from error
        done = {
            "round": index,
            "target": {target.measure: target.value},
            "params": result.params_after,
            "flops": result.flops_after,
            "predicted_loss": result.plan.predicted_loss,
        }
        self._costs = self._costs or {"params": result.params_before, "flops": result.flops_before}
        self._model, self._shapes, self._last = result.model, _shapes(result.model), result
        self.history.append(done)
        return Step(index, result)

    def _target(self, index: int) -> Target:
        """What a round is told: a fraction of the model it finds."""
        measure, kept = self._goal.measure, self._goal.kept
        before, after = (
            share_kept(kept, Fraction(done, self.steps), self.schedule) for done in (index - 1, index)
        )
        if measure == "ratio":
            # Twelve digits, so that seven rounds to 2⁻⁷ are seven halves.
            return Target(measure, round(float(1 - after / before), 12), yielding=True)
        if self.history:
            now = self.history[-1][measure]
            after = Fraction(min(math.floor(after * self._costs[measure]), now), now)
        return Target(measure, float(after), exact=after)

    def _check_ratio(self) -> None:
        """Refuses rounds that would have to cut more of every side than they may."""
        if self._goal.measure != "ratio":
            return
        limit = self._arguments["max_ratio"]
        for index in range(1, self.steps + 1):
            share = self._target(index).value
            if share > limit:
                raise ValueError(
                    f"Pruner: target must need no more than max_ratio={limit} in any round, got {share} in "
                    f"round {index} of {self.steps}; take more steps, another schedule or raise max_ratio"
                )


def _checked_history(saved: _Saved, steps: int) -> list[dict[str, Any]]:
    """The history of a file; a ValueError where it cannot be that of so many rounds."""
    history: list[dict[str, Any]] = [{**record(_Round, each)} for each in saved["history"]]
    if [each["round"] for each in history] != list(range(1, min(len(history), steps) + 1)):
        raise ValueError(f"history must have up to {steps} rounds in their order")
    costs = [record(_Costs, saved["costs"])] if saved["costs"] or history else []
    for each in (*costs, *history):
        check_sizes("params and flops", (each["params"], each["flops"]))
    return history


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model; a TypeError where its state holds anything else."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"Pruner: state of model must be tensors, got {type(value).__name__} {name!r}")
    return state


def _shapes(model: nn.Module) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """What is there to be trained."""
    return {name: (value.dtype, value.shape) for name, value in _state(model).items()}


def _digest(tensor: Tensor) -> str:
    """Short text that differs where dtype, shape or numbers do."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """An argument as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Adapter):
        return adapter_record(value)
    if callable(value):
        return qualified_name(value)
    if isinstance(value, torch.dtype):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else str(value)
