"""What training and curvature take as the loss: which positions count, and losses of one's own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eigendamage_ext._adapter import Inputs

# Logits and targets to the loss of each example, (N,).
Loss = Callable[[Tensor, Tensor], Tensor]

IGNORED = -100  # the target of a position that does not count


def check_loss(caller: str, loss: object, words: tuple[str, ...]) -> None:
    """Refuses what is neither one of the words nor a function."""
    if loss not in words and (isinstance(loss, str) or not callable(loss)):
        raise ValueError(
            f"{caller}: loss must be one of {', '.join(map(repr, words))} or a function of logits and "
            f"targets, got {loss!r}; choose one of them"
        )


def losses_of(loss: Loss, logits: Tensor, targets: Tensor, caller: str) -> Tensor:
    """Losses ``(N,)`` by a function of one's own.

    Raises:
        ValueError: It returns something else.
    """
    losses = loss(logits, targets)
    if not isinstance(losses, Tensor) or losses.shape != logits.shape[:1] or not losses.is_floating_point():
        got = f"{losses.dtype} {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"{caller}: loss must return a number for each of {len(logits)} examples, got {got}; sum over an "
            "example's own outputs and take no mean over the batch, as reduction='none' does"
        )
    return losses


def counted(logits: Tensor, targets: Tensor | None, inputs: Inputs | None, caller: str) -> Tensor | None:
    """Which positions count, ``(N, T)``, for logits ``(N, T, C)``; None for ``(N, C)``.

    They are those whose target, where there are targets, is not -100, and whose attention mask, where the
    inputs have one of that shape, is not 0.

    Raises:
        ValueError: None counts; neither tells which, though there is a mask; or targets of another shape.
    """
    if logits.dim() != 3:
        return None
    counts = _counted(logits, targets, inputs, caller)
    if not counts.any():
        raise ValueError(
            f"{caller}: loader must yield a position that counts in every batch, got targets of -100 or a "
            "mask of 0 at all of them; leave such batches out"
        )
    return counts


def _counted(logits: Tensor, targets: Tensor | None, inputs: Inputs | None, caller: str) -> Tensor:
    shape = logits.shape[:2]
    if targets is not None and targets.shape != shape:
        raise ValueError(
            f"{caller}: targets must be {tuple(shape)}, one for each position of logits "
            f"{tuple(logits.shape)}, got {tuple(targets.shape)}; set -100 where there is none"
        )
    name, mask = _attention(inputs)
    if mask is not None and mask.shape == shape:
        counts = mask.to(logits.device) != 0
        return counts if targets is None else counts & (targets.long() != IGNORED)
    if targets is not None:
        return targets.long() != IGNORED
    if mask is not None:
        raise ValueError(
            f"{caller}: {name} must be {tuple(shape)}, as the positions of the logits, to tell which of them "
            f"count, got {tuple(mask.shape)}; give targets, -100 where a position does not count"
        )
    return torch.ones(shape, dtype=torch.bool, device=logits.device)


def answers(
    caller: str, inputs: Inputs, logits: Tensor, y: Tensor, taught: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, targets and the teacher's logits of what counts: ``(m, C)``, ``(m,)``, ``(m, C)``.

    Raises:
        ValueError: Logits and targets do not belong together, or nothing counts.
    """
    if logits.dim() not in (2, 3) or y.shape != logits.shape[:-1]:
        raise ValueError(
            f"{caller}: model must give logits (n, C) for targets (n,), or (n, T, C) for (n, T), got "
            f"{tuple(logits.shape)} for {tuple(y.shape)}; flatten further dimensions into the batch, or pass "
            "adapter=ed.Adapter(…)"
        )
    taught = None if taught is None else taught.to(logits.device)
    counts = counted(logits, y, inputs, caller)
    if counts is None:
        return logits, y, taught
    return logits[counts], y[counts], None if taught is None else taught[counts]


def hits_in(logits: Tensor, y: Tensor) -> Tensor:
    """How many rows ``(m, C)`` have their largest logit at their target; one with a NaN has not."""
    return ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()


def distilled(
    logits: Tensor, y: Tensor, teacher_logits: Tensor | None, temperature: float, distillation: float
) -> Tensor:
    """The mean cross entropy of ``logits (m, C)``, or what `train` makes of it and a teacher's logits."""
    if teacher_logits is None:
        return F.cross_entropy(logits, y)
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - distillation) * F.cross_entropy(logits, y) + distillation * temperature**2 * divergence


def attended(inputs: Inputs) -> Tensor | None:
    """Which tokens ``(N, T)`` are there and no padding, by the attention mask; None without such a mask.

    Of a network with an encoder and a decoder, whose layers see tokens of both, None.
    """
    name, mask = _attention(inputs)
    return mask != 0 if mask is not None and mask.dim() == 2 and name == "attention_mask" else None


def _attention(inputs: Inputs | None) -> tuple[str, Tensor | None]:
    """The attention mask among the inputs: of an encoder and a decoder that of the decoder, which answers."""
    if not isinstance(inputs, dict):
        return "", None
    name = "decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask"
    mask = inputs.get(name)
    return name, mask if isinstance(mask, Tensor) else None
