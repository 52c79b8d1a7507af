"""Training, fine-tuning, evaluation and BN re-estimation of classifiers, in plain PyTorch.

A loader is any iterable, to be iterated again, of batches as `estimate_factors` takes them: ``(input,
target)``, or a mapping with "labels". Targets are class indices ``(n,)``, or ``(n, T)`` for a model that
gives logits ``(n, T, C)``. Of those only positions count whose target is not -100 and whose "attention_mask"
is not 0. Batches move to the model's device. Every function leaves train/eval flags and PyTorch's global
random state (CPU and the model's device) as it found them, also after an exception.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._adapter import (
    Adapter,
    Inputs,
    adapter_record,
    call,
    check_adapter,
    logits_of,
    move,
    qualified_name,
    unpack,
)
from ._checkpoint import Checkpoint, Epoch, OutOfTime, TrainingState
from ._finite import check_finite, steepest_of
from ._objective import Loss, answers, check_loss, distilled, hits_in, losses_of
from ._progress import track
from ._random import seeded

__all__ = [
    "SCHEDULES",
    "Checkpoint",
    "Epoch",
    "OutOfTime",
    "evaluate",
    "finetune",
    "learning_rate",
    "mean_loss",
    "recalibrate_bn",
    "train",
]

LOSSES = ("cross_entropy",)
SCHEDULES = ("cosine", "step", "constant")


def train(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 2e-4,
    schedule: str = "cosine",
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    distillation: float = 0.9,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    loss: str | Loss = "cross_entropy",
    adapter: Adapter | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train ``model`` in place by SGD with momentum.

    With a teacher the loss is (1 − d)·CE(z, y) + d·τ²·KL(softmax(z_teacher/τ) ‖ softmax(z/τ)) with
    d = ``distillation`` and τ = ``temperature`` (Hinton et al. 2015, arXiv 1503.02531); the teacher runs in
    eval mode without gradients.

    Args:
        model: Gives logits ``(n, C)`` or ``(n, T, C)``; parameters that do not require grad stay as they are.
        loader: Batches; ``loader.set_epoch(epoch)`` is called before each epoch where it exists.
        epochs: Passes over the loader, 0 or more.
        lr: Learning rate at the start.
        momentum: Of SGD.
        weight_decay: L2 penalty of SGD, on every parameter.
        schedule: "cosine" falls to 0 step by step; "step" is the paper's ×0.1 at 50 % and ×0.01 at 75 %;
            "constant".
        teacher: Network to distil from; shares no module with ``model``.
        temperature: τ above.
        distillation: d above, in [0, 1]; 1 ignores the labels.
        seed: Seeds dropout and any loader that draws from PyTorch's global generator.
        autocast: torch.bfloat16 runs ``model`` and ``teacher`` under `torch.autocast`; weights and loss stay
            as they are.
        loss: "cross_entropy", averaged over a batch's examples or positions that count; or a function of your
            own, ``loss(logits, targets)`` of each example ``(n,)``, averaged over them.
        adapter: How to read batches and outputs that are not of the usual kinds; see `Adapter`.
        checkpoint: Where training is written down between epochs. If the file exists already, training goes
            on from there, to the same result as if it had never stopped.
        progress: Show a progress bar.

    Returns:
        One record per epoch.

    Raises:
        ValueError: An argument out of range, an empty loader, a checkpoint of another training, or a loss or
            gradient that is not finite: the model then has the weights of the step before.
        OutOfTime: The checkpoint's deadline is near.
    """
    if epochs < 0:
        raise ValueError(f"train: epochs must be at least 0, got {epochs}; 0 leaves the model unchanged")
    if schedule not in SCHEDULES:
        raise ValueError(f"train: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if autocast not in (None, torch.bfloat16):
        raise ValueError(
            f"train: autocast must be torch.bfloat16 or None, got {autocast!r}; float16 needs a loss scaled "
            "step by step"
        )
    check_loss("train", loss, LOSSES)
    adapter = check_adapter("train", adapter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "train: model must have a parameter that requires grad, got none; unfreeze some of it"
        )
    if teacher is not None:
        _check_teacher(model, teacher, temperature, distillation)
        if callable(loss):
            raise ValueError(
                f"train: teacher must be None for a loss of your own, got {type(teacher).__name__}; call it "
                "within your loss"
            )

    device = _device(model)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = len(loader) if isinstance(loader, Sized) else None
    half = partial(torch.autocast, device.type, autocast) if autocast else nullcontext
    history: list[Epoch] = []
    settings: dict[str, Any] = {"epochs": epochs, "lr": lr, "momentum": momentum, "schedule": schedule}
    settings |= {"weight_decay": weight_decay, "seed": seed, "autocast": str(autocast), "steps": steps}
    settings["teacher"] = None if teacher is None else [temperature, distillation]
    settings["loss"] = qualified_name(loss) if callable(loss) else None
    settings["adapter"] = adapter_record(adapter)
    with ExitStack() as stack:
        generators = stack.enter_context(seeded(seed, device))
        stack.enter_context(_mode(model, training=True))
        if teacher is not None:
            stack.enter_context(_mode(teacher, training=False))
        if checkpoint is not None:
            checkpoint.begin(TrainingState(settings, model, optimizer, generators, history), epochs)
        done = len(history)
        batches = track(
            _epochs(loader, range(done, epochs), checkpoint),
            total=None if steps is None else (epochs - done) * steps,
            description="train",
            enabled=progress,
        )
        for epoch, step, batch in batches:
            inputs, y, size = _labelled(batch, device, adapter, "train", step)
            rate = learning_rate(lr, schedule, (epoch + (step / steps if steps else 0.0)) / epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with half():
                logits = logits_of(call(model, inputs), adapter, caller="train")
                teacher_logits = _teach(teacher, inputs, adapter)
            if autocast:
                logits = logits.float()
                teacher_logits = None if teacher_logits is None else teacher_logits.float()
            if callable(loss):
                objective = losses_of(loss, logits, y, "train").mean()
                right = torch.zeros_like(objective)
            else:
                logits, y, teacher_logits = answers("train", inputs, logits, y, teacher_logits)
                objective, size = distilled(logits, y, teacher_logits, temperature, distillation), len(y)
                right = hits_in(logits, y)
            optimizer.zero_grad()
            objective.backward()  # type: ignore[no-untyped-call]
            # All at once: a device is waited for here and nowhere else in a step, unless positions count.
            told = [objective.detach(), right, steepest_of(parameters).to(objective.device)]
            value, hits, steepest = torch.stack([number.double() for number in told]).tolist()
            if not math.isfinite(value) or not math.isfinite(steepest):
                optimizer.zero_grad()
                what, got = ("gradients", steepest) if math.isfinite(value) else ("loss", value)
                raise ValueError(
                    f"train: {what} must be finite, got {got} in epoch {epoch + 1}, step {step + 1} "
                    f"(learning rate {rate:g}); lower lr or look for bad inputs. "
                    "The model keeps the weights of the step before"
                )
            optimizer.step()
            if step == 0:
                accuracy = None if callable(loss) else 0.0
                history.append(Epoch(epoch=epoch + 1, lr=rate, loss=0.0, accuracy=accuracy))
                seen = 0
            seen += size
            record, weight = history[-1], size / seen
            record["loss"] += (value - record["loss"]) * weight
            if record["accuracy"] is not None:
                record["accuracy"] += (hits / size - record["accuracy"]) * weight
        optimizer.zero_grad()
    return history


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    distillation: float = 0.9,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    loss: str | Loss = "cross_entropy",
    adapter: Adapter | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """`train` with the paper's defaults for a pruned network: less learning rate, less decay."""
    return train(
        model,
        loader,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        teacher=teacher,
        temperature=temperature,
        distillation=distillation,
        seed=seed,
        autocast=autocast,
        loss=loss,
        adapter=adapter,
        checkpoint=checkpoint,
        progress=progress,
    )


def learning_rate(lr: float, schedule: str, fraction: float) -> float:
    """The rate after ``fraction`` in [0, 1] of the training, from ``lr`` at 0."""
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * fraction))
    if schedule == "step":
        return lr * (1.0 if fraction < 0.5 else 0.1 if fraction < 0.75 else 0.01)
    return lr


def evaluate(
    model: nn.Module, loader: Iterable[Any], *, adapter: Adapter | None = None, progress: bool = False
) -> float:
    """Share of examples whose largest logit is the target's, in [0, 1]; a row with a NaN counts as wrong.

    Of logits ``(n, T, C)`` it is the share of the positions that count.
    """

    def total(inputs: Inputs, logits: Tensor, y: Tensor, examples: int) -> tuple[Tensor, int]:
        logits, y, _ = answers("evaluate", inputs, logits, y)
        return hits_in(logits, y), len(y)

    return _mean(model, loader, total, "evaluate", adapter, progress)


def mean_loss(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: str | Loss = "cross_entropy",
    adapter: Adapter | None = None,
    progress: bool = False,
) -> float:
    """The loss of an example, averaged over the examples: cross-entropy in nats, or a function of your own.

    Of logits ``(n, T, C)`` an example's loss is the sum over the positions that count, as in
    `estimate_factors`, whose predictions it is to be compared with.
    """
    check_loss("mean_loss", loss, LOSSES)

    def total(inputs: Inputs, logits: Tensor, y: Tensor, examples: int) -> tuple[Tensor, int]:
        if callable(loss):
            return losses_of(loss, logits, y, "mean_loss").double().sum(), examples
        logits, y, _ = answers("mean_loss", inputs, logits, y)
        return F.cross_entropy(logits.double(), y, reduction="sum"), examples

    return _mean(model, loader, total, "mean_loss", adapter, progress)


def recalibrate_bn(
    model: nn.Module, loader: Iterable[Any], *, adapter: Adapter | None = None, progress: bool = False
) -> None:
    """Replace the running statistics of every BN layer by their average over the loader, in place.

    Batch means and (unbiased) batch variances are averaged as by BN's ``momentum=None``: every batch counts
    the same, so batches should be of one size. BN layers normalise by their batch meanwhile, everything else
    (dropout) runs in eval mode. Weights, momentum and flags stay; when it raises, the old statistics are
    back. A model without BN layers that track statistics is left alone.

    Args:
        model: The network; layers other than BN see batches as they come.
        loader: Batches, with or without targets, best of the size used in training.
        adapter: How to read batches that are not of the usual kinds; see `Adapter`.
        progress: Show a progress bar.

    Raises:
        ValueError: The loader is empty, or what it yields makes a statistic that is not finite.
    """
    adapter = check_adapter("recalibrate_bn", adapter)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    device = _device(model)
    momenta = [layer.momentum for layer in layers]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    calls: Counter[nn.Module] = Counter()

    def average(layer: nn.Module, _: object) -> None:
        calls[layer] += 1  # BN itself would ask its device how often it was called
        layer.momentum = 1 / calls[layer]  # type: ignore[assignment]

    handles = []
    with seeded(0, device), _mode(model, training=False), torch.no_grad():
        try:
            for layer in layers:
                layer.reset_running_stats()
                handles.append(layer.register_forward_pre_hook(average))
                layer.train()
            for index, batch in enumerate(_batches(loader, "recalibrate_bn", progress)):
                inputs, _, _ = unpack(batch, adapter, caller="recalibrate_bn", index=index)
                call(model, move(inputs, device))
            check_finite(model, caller="recalibrate_bn")
        except BaseException:
            for layer, buffers in zip(layers, before, strict=True):
                for name, buffer in layer.named_buffers():
                    buffer.copy_(buffers[name])
            raise
        finally:
            for handle in handles:
                handle.remove()
            for layer, value in zip(layers, momenta, strict=True):
                layer.momentum = value


def _check_teacher(model: nn.Module, teacher: nn.Module, temperature: float, distillation: float) -> None:
    if set(model.modules()) & set(teacher.modules()):
        raise ValueError(
            "train: teacher must share no module with model, got a shared one; "
            "pass copy.deepcopy of the dense model"
        )
    if not temperature > 0:
        raise ValueError(f"train: temperature must be positive, got {temperature}")
    if not 0 <= distillation <= 1:
        raise ValueError(f"train: distillation must lie in [0, 1], got {distillation}")


def _teach(teacher: nn.Module | None, inputs: Inputs, adapter: Adapter) -> Tensor | None:
    if teacher is None:
        return None
    with torch.no_grad():
        return logits_of(call(teacher, move(inputs, _device(teacher))), adapter, caller="train")


def _mean(
    model: nn.Module,
    loader: Iterable[Any],
    total: Callable[[Inputs, Tensor, Tensor, int], tuple[Tensor, int]],
    function: str,
    adapter: Adapter | None,
    progress: bool,
) -> float:
    """The sum over the batches of what `total` finds, over the sum of the numbers that it finds."""
    adapter, device = check_adapter(function, adapter), _device(model)
    value, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with seeded(0, device), _mode(model, training=False), torch.no_grad():
        for index, batch in enumerate(_batches(loader, function, progress)):
            inputs, y, examples = _labelled(batch, device, adapter, function, index)
            logits = logits_of(call(model, inputs), adapter, caller=function)
            part, size = total(inputs, logits, y, examples)
            value += part
            count += size
    return value.item() / count


def _batches(loader: Iterable[Any], function: str, progress: bool) -> Iterator[Any]:
    batch = None
    total = len(loader) if isinstance(loader, Sized) else None
    for batch in track(loader, total=total, description=function, enabled=progress):
        yield batch
    if batch is None:
        raise ValueError(
            f"{function}: loader must yield at least one batch, got none; check the data set's length"
        )


def _epochs(
    loader: Iterable[Any], epochs: Iterable[int], checkpoint: Checkpoint | None
) -> Iterator[tuple[int, int, Any]]:
    for epoch in epochs:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        step = -1
        for step, batch in enumerate(loader):
            yield epoch, step, batch
        if step < 0:
            raise ValueError(
                f"train: loader must yield at least one batch in every epoch, got none in epoch {epoch + 1}; "
                "pass an iterable that starts anew (a DataLoader, a TensorLoader, a list), not a generator"
            )
        if checkpoint is not None:
            checkpoint.after_epoch()


def _labelled(
    batch: Any, device: torch.device, adapter: Adapter, function: str, index: int
) -> tuple[Inputs, Tensor, int]:
    inputs, targets, examples = unpack(batch, adapter, caller=function, index=index)
    if targets is None:
        raise ValueError(f"{function}: loader must yield (input, target), got inputs alone; add the labels")
    return move(inputs, device), move(targets, device), examples


def _device(model: nn.Module) -> torch.device:
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
