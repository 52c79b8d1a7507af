"""How fast two networks are, timed in turn: at several batch sizes, eager and compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from eigendamage_ext import _devices
from eigendamage_ext._adapter import Inputs, call, map_tensors, named_tensors
from eigendamage_ext._timing import Spread, in_turn
from eigendamage_ext.cli.networks import in_words
from eigendamage_ext.pruning.channel_check import first_line, tensors_in

WARM_UPS = 3
LEAST_ROUNDS, MOST_ROUNDS = 7, 1000

Run = Callable[[], Any]
Pair = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass.

    Attributes:
        batch: How many examples.
        mode: "eager" or "compiled".
        rounds: How often each network ran.
        base, other: Of the two networks.
        skipped: Why there are no times.
    """

    batch: int
    mode: str
    rounds: int = 0
    base: Spread | None = None
    other: Spread | None = None
    skipped: str | None = None

    @property
    def speedup(self) -> float | None:
        """How many times faster the other network is, by the medians."""
        return self.base.median / self.other.median if self.base and self.other else None


def check_outputs(networks: Pair, example: Inputs, caller: str) -> None:
    """Refuses two networks that do not take the same input, or give outputs of other shapes.

    Raises:
        ValueError: Naming the network.
    """
    shapes = []
    for network, name in zip(networks, ("BASE", "FILE"), strict=True):
        try:
            with torch.inference_mode():
                outputs = list(tensors_in(call(network, example)))
        except Exception as error:
            raise ValueError(
                f"{caller}: {name} must take {in_words(example)}, got {first_line(error)}; say what it "
                "takes with --input"
            ) from error
        shapes.append([tuple(tensor.shape) for tensor in outputs])
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{caller}: FILE must give outputs of the shapes of BASE, got {shapes[1]} in place of "
            f"{shapes[0]}; name the network that it was made from"
        )


def latency(
    networks: Pair, example: Inputs, batch: int, mode: str, *, seconds: float, backend: str = "inductor"
) -> Latency:
    """Times both networks.

    Args:
        networks: In eval mode, on the device of the example.
        example: One example, every tensor ``(1, …)``.
        batch: How many examples.
        mode: "eager", or "compiled" by torch.compile for this batch size alone.
        seconds: For how long, about, after a first few passes that are not counted.
        backend: Of torch.compile.

    Returns:
        The times or, where torch.compile fails, the reason.
    """
    x = map_tensors(lambda tensor: tensor.expand(batch, *tensor.shape[1:]).clone(), example)
    device = next(named_tensors(x))[1].device
    runs: list[Run] = [partial(call, network, x) for network in networks]
    with torch.inference_mode():
        if mode == "compiled":
            try:
                torch.compiler.reset()  # beyond a few variants of one forward it would go on in eager mode
                runs = [partial(call, _compiled(network, backend), x) for network in networks]
                for run in runs:
                    run()
            except Exception as error:
                origin = getattr(error, "inner_exception", error)  # of what a backend raised
                return Latency(batch, mode, skipped=f"torch.compile fails here with {first_line(origin)}")
        wait = partial(_devices.wait, device)
        once = sum(times[-1] for times in in_turn(runs, WARM_UPS, wait))
        rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(once, 1e-9))))
        base, other = map(Spread.of, in_turn(runs, rounds, wait))
    return Latency(batch, mode, rounds, base, other)


def _compiled(network: nn.Module, backend: str) -> nn.Module:
    found: Any = torch.compile(network, backend=backend, dynamic=False)
    return cast(nn.Module, found)
