"""Training, fine-tuning, evaluation and BN re-estimation of image classifiers, in plain PyTorch.

A loader is any iterable of batches ``(input, target)`` that can be iterated again: input ``(n, ...)``,
target ``(n,)`` class indices. Batches move to the model's device. Every function leaves train/eval flags
and PyTorch's global random state (CPU and the model's device) as it found them, also after an exception.
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

from ._checkpoint import Checkpoint, Epoch, OutOfTime, TrainingState
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
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train ``model`` in place by SGD with momentum.

    With a teacher the loss is (1 − d)·CE(z, y) + d·τ²·KL(softmax(z_teacher/τ) ‖ softmax(z/τ)) with
    d = ``distillation`` and τ = ``temperature`` (Hinton et al. 2015, arXiv 1503.02531); the teacher runs in
    eval mode without gradients.

    Args:
        model: Input ``(n, ...)`` to logits ``(n, C)``; parameters that do not require grad stay as they are.
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
        checkpoint: Where training is written down between epochs. If the file exists already, training goes
            on from there, to the same result as if it had never stopped.
        progress: Show a progress bar.

    Returns:
        One record per epoch.

    Raises:
        ValueError: An argument out of range, an empty loader, a loss that is not finite, or a checkpoint of
            another training.
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
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "train: model must have a parameter that requires grad, got none; unfreeze some of it"
        )
    if teacher is not None:
        _check_teacher(model, teacher, temperature, distillation)

    device = _device(model)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = len(loader) if isinstance(loader, Sized) else None
    half = partial(torch.autocast, device.type, autocast) if autocast else nullcontext
    history: list[Epoch] = []
    settings: dict[str, Any] = {"epochs": epochs, "lr": lr, "momentum": momentum, "schedule": schedule}
    settings |= {"weight_decay": weight_decay, "seed": seed, "autocast": str(autocast), "steps": steps}
    settings["teacher"] = None if teacher is None else [temperature, distillation]
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
            x, y = _labelled(batch, device, "train")
            rate = learning_rate(lr, schedule, (epoch + (step / steps if steps else 0.0)) / epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with half():
                logits, teacher_logits = _logits(model, x, y, "train"), _teach(teacher, x)
            if autocast:
                logits = logits.float()
                teacher_logits = None if teacher_logits is None else teacher_logits.float()
            loss = _loss(logits, y, teacher_logits, temperature, distillation)
            # Both at once: a device is waited for here and nowhere else in a step.
            value, hits = torch.stack([loss.detach().double(), _hits(logits, y).double()]).tolist()
            if not math.isfinite(value):
                raise ValueError(
                    f"train: loss must be finite, got {value} in epoch {epoch + 1}, step {step + 1} "
                    f"(learning rate {rate:g}); lower lr or look for bad inputs. "
                    "The model keeps the weights of the step before"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step == 0:
                history.append(Epoch(epoch=epoch + 1, lr=rate, loss=0.0, accuracy=0.0))
                seen = 0
            seen += len(y)
            record, weight = history[-1], len(y) / seen
            record["loss"] += (value - record["loss"]) * weight
            record["accuracy"] += (hits / len(y) - record["accuracy"]) * weight
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


def evaluate(model: nn.Module, loader: Iterable[Any], *, progress: bool = False) -> float:
    """Share of examples whose largest logit is the target's, in [0, 1]; a row with a NaN counts as wrong."""
    return _mean(model, loader, _hits, "evaluate", progress)


def mean_loss(model: nn.Module, loader: Iterable[Any], *, progress: bool = False) -> float:
    """Cross-entropy in nats, averaged over the examples."""
    return _mean(model, loader, _total_loss, "mean_loss", progress)


def recalibrate_bn(model: nn.Module, loader: Iterable[Any], *, progress: bool = False) -> None:
    """Replace the running statistics of every BN layer by their average over the loader, in place.

    Batch means and (unbiased) batch variances are averaged as by BN's ``momentum=None``: every batch counts
    the same, so batches should be of one size. BN layers normalise by their batch meanwhile, everything else
    (dropout) runs in eval mode. Weights, momentum and flags stay; when it raises, the old statistics are
    back. A model without BN layers that track statistics is left alone.

    Args:
        model: The network; layers other than BN see batches as they come.
        loader: Batches ``(input, target)`` or inputs alone, best of the size used in training.
        progress: Show a progress bar.

    Raises:
        ValueError: The loader is empty.
    """
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
            for batch in _batches(loader, "recalibrate_bn", progress):
                x, _ = _pair(batch, device)
                model(x)
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


def _teach(teacher: nn.Module | None, x: Tensor) -> Tensor | None:
    if teacher is None:
        return None
    with torch.no_grad():
        logits: Tensor = teacher(x.to(_device(teacher)))
    return logits.to(x.device)


def _loss(
    logits: Tensor, y: Tensor, teacher_logits: Tensor | None, temperature: float, distillation: float
) -> Tensor:
    if teacher_logits is None:
        return F.cross_entropy(logits, y)
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - distillation) * F.cross_entropy(logits, y) + distillation * temperature**2 * divergence


def _hits(logits: Tensor, y: Tensor) -> Tensor:
    return ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()


def _total_loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.double(), y, reduction="sum")


def _mean(
    model: nn.Module,
    loader: Iterable[Any],
    total: Callable[[Tensor, Tensor], Tensor],
    function: str,
    progress: bool,
) -> float:
    device = _device(model)
    value, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with seeded(0, device), _mode(model, training=False), torch.no_grad():
        for batch in _batches(loader, function, progress):
            x, y = _labelled(batch, device, function)
            value += total(_logits(model, x, y, function), y)
            count += len(y)
    return value.item() / count


def _logits(model: nn.Module, x: Tensor, y: Tensor, function: str) -> Tensor:
    logits: Tensor = model(x)
    if logits.dim() != 2 or y.shape != logits.shape[:1]:
        raise ValueError(
            f"{function}: model must give logits (n, C) for targets (n,), got {tuple(logits.shape)} for "
            f"{tuple(y.shape)}; flatten further dimensions into the batch"
        )
    return logits


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


def _pair(batch: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
    x, y = (batch, None) if isinstance(batch, Tensor) else batch if len(batch) == 2 else (batch[0], None)
    # A device takes what it is sent in order, so only a copy to the CPU has to be waited for.
    unwaited = device.type != "cpu"
    return x.to(device, non_blocking=unwaited), None if y is None else y.to(device, non_blocking=unwaited)


def _labelled(batch: Any, device: torch.device, function: str) -> tuple[Tensor, Tensor]:
    x, y = _pair(batch, device)
    if y is None:
        raise ValueError(f"{function}: loader must yield (input, target), got inputs alone; add the labels")
    return x, y


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
