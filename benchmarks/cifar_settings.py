"""How much of everything `benchmarks.cifar` does."""

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.pruning.settings import ALLOCATIONS, SCORES

DIRECTIONS = [name for name, method in METHODS.items() if isinstance(method, DirectionMethod)]
VARIANTS = tuple(f"{m}.{s}.{a}" for m in DIRECTIONS for s in SCORES for a in ALLOCATIONS)


class Network(NamedTuple):
    """An architecture, and for how many epochs it is trained."""

    kind: str
    depth: int
    widths: tuple[int, ...]
    epochs: int

    def build(self) -> nn.Module:
        """The network with new weights, drawn from PyTorch's generator."""
        return {"ResNet": ResNet, "VGG": VGG}[self.kind](self.depth, self.widths)

    def flops(self) -> int:
        """Of one image."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            self.build()(torch.empty(1, 3, 32, 32))
        return counter.get_total_flops()


@dataclass(frozen=True)
class Settings:
    """How everything is done; with the device and the seed it decides what each file holds.

    Attributes:
        train_images, test_images: Take only so many, evenly spaced; None takes all.
        timing_batches: Batch sizes that are timed.
        repeats: Timed passes of each network, of which the median counts; 0 times nothing.
    """

    networks: dict[str, Network]
    train_images: int | None = None
    test_images: int | None = None
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 5e-4
    finetune_epochs: int = 10
    finetune_lr: float = 0.02
    budgets: tuple[float, ...] = (0.5, 0.35, 0.25, 0.15)
    timing_batches: tuple[int, ...] = (1, 256)
    repeats: int = 31
    seeds: tuple[int, ...] = (0, 1, 2)


PRESETS = {
    "full": Settings(
        {
            "resnet32": Network("ResNet", 32, (64, 128, 256), 100),
            "vgg19": Network("VGG", 19, (64, 128, 256, 512, 512), 200),
        }
    ),
    "small": Settings(
        {
            "resnet8": Network("ResNet", 8, (12, 16, 24), 4),
            "vgg11": Network("VGG", 11, (16, 24, 32, 32, 32), 4),
        },
        train_images=1000,
        test_images=500,
        batch_size=32,
        lr=0.05,
        finetune_epochs=1,
        budgets=(0.5, 0.25),
        timing_batches=(1, 50),
        repeats=3,
        seeds=(0,),
    ),
}


def settings_record(settings: Settings, device: str) -> dict[str, Any]:
    """What makes a folder's files what they are, as JSON gives it back."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return record | {"device": torch.device(device).type, "torch": torch.__version__}
