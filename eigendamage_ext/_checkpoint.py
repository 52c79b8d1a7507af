"""Training that goes on where it stopped: a file written between epochs, and a time to stop there."""

import os
import reprlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ._files import ArtifactError, read_tensors, write_tensors
from ._records import record

FORMAT = "eigendamage-training"


class OutOfTime(Exception):  # noqa: N818  # not an error: nothing is lost
    """Training stopped between two epochs; its checkpoint holds all that was done."""


class Epoch(TypedDict):
    """One epoch of a history: its number from 1, its first learning rate, means over what it trained on.

    That is its examples, or of token-level logits the positions that count. The accuracy under a loss of
    one's own is None.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class TrainingState:
    """All that the rest of a training depends on, as it is between two epochs.

    Attributes:
        settings: How it is trained.
        model: What is trained.
        optimizer: Its only state are momentum buffers.
        generators: The random numbers it draws from.
        history: The epochs that are done.
    """

    settings: dict[str, Any]
    model: nn.Module
    optimizer: torch.optim.SGD
    generators: Sequence[torch.Generator]
    history: list[Epoch]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """The state but for settings and history."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, parameter in enumerate(self._parameters()):
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{index}"] = buffer
        return tensors | {f"random.{i}": generator.get_state() for i, generator in enumerate(self.generators)}

    def misfit(self, tensors: dict[str, Tensor]) -> str | None:
        """Why tensors are not those of such a state; None if they are."""
        momentum = {f"momentum.{index}": buffer for index, buffer in enumerate(self._parameters())}
        ours = self.tensors() | momentum
        for name in sorted(ours.keys() | tensors.keys()):
            wanted, found = (_kind(some.get(name)) for some in (ours, tensors))
            if wanted != found and not (name in momentum and name not in tensors):
                return f"{found} in place of {wanted} as {name!r}"
        for index, generator in enumerate(self.generators):
            try:
                torch.Generator(generator.device).set_state(tensors[f"random.{index}"])
            except RuntimeError as error:
                return str(error)
        return None

    def restore(self, tensors: dict[str, Tensor], history: Sequence[Epoch]) -> None:
        """Puts back what another state like this held."""
        model = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        self.model.load_state_dict(model)
        for index, parameter in enumerate(self._parameters()):
            if f"momentum.{index}" in tensors:
                buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"momentum.{index}"])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        for index, generator in enumerate(self.generators):
            generator.set_state(tensors[f"random.{index}"])
        self.history[:] = history


class Checkpoint:
    """The file that a training writes and, called again with the same arguments, goes on from.

    It stays when the training is over: remove it, or the next training of that name has nothing left to do.

    Args:
        path: The file; it need not exist.
        seconds: Let at least so many pass between two writes, the last epoch apart.
        deadline: A ``time.monotonic()``: where the next epoch would end later if it took as long as the last,
            the training writes the file and raises `OutOfTime`.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, seconds: float = 0.0, deadline: float | None = None
    ) -> None:
        self.path, self.seconds, self.deadline = Path(path), seconds, deadline
        self._state: TrainingState
        self._epochs = 0
        self._began = self._written = 0.0

    def begin(self, state: TrainingState, epochs: int) -> None:
        """Makes the state what the file holds, if there is one; training then goes on to so many epochs.

        Raises:
            ArtifactError: The file is damaged, or of another model; nothing has been changed then.
            ValueError: It is of a training with other settings, likewise.
        """
        self._state, self._epochs = state, epochs
        self._began = self._written = time.monotonic()
        if not self.path.exists():
            return
        tensors, manifest = read_tensors(self.path, format=FORMAT)
        try:
            settings, history = dict(manifest["settings"]), [record(Epoch, e) for e in manifest["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"load: {str(self.path)!r} must hold a training, got something else ({error}); remove it to "
                "start anew"
            ) from error
        for name, value in state.settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"train: checkpoint must be of a training with the same arguments, got {name} "
                    f"{str(settings.get(name))[:60]} in place of {value}; remove {self.path} to start anew"
                )
        if [epoch["epoch"] for epoch in history] != list(range(1, min(len(history), epochs) + 1)):
            raise ArtifactError(
                f"load: {str(self.path)!r} must hold up to {epochs} epochs in their order, got "
                f"{reprlib.repr(history)}; remove it to start anew"
            )
        if misfit := state.misfit(tensors):
            raise ArtifactError(
                f"train: checkpoint must be of the same model, got another in {self.path} ({misfit}); "
                "remove it to start anew"
            )
        state.restore(tensors, history)

    def after_epoch(self) -> None:
        """Writes the file if it is time to, and raises `OutOfTime` if there is none for another epoch."""
        now, left = time.monotonic(), self._epochs - len(self._state.history)
        over = self.deadline is not None and left > 0 and now + (now - self._began) > self.deadline
        if over or left == 0 or now - self._written >= self.seconds:
            manifest = {"settings": self._state.settings, "history": self._state.history}
            write_tensors(self.path, self._state.tensors(), manifest, format=FORMAT)
            self._written = time.monotonic()
        if over:
            raise OutOfTime(f"stopped in time; {self.path} holds the epochs that are done, {left} are left")
        self._began = now


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
