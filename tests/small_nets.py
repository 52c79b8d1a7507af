"""Small networks with every kind of place a layer can be in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """A residual net for 3×8×8 images: containers, groups, depthwise, strided 1×1, one layer not covered."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            [nn.Conv2d(16, 16, 3, padding="same"), nn.Conv2d(16, 16, 3, padding=1, groups=2)]
        )
        self.branches = nn.ModuleDict(
            {"dw": nn.Conv2d(16, 16, 3, padding=1, groups=16), "pw": nn.Conv2d(16, 32, 1)}
        )
        self.down = nn.Conv2d(32, 32, 1, stride=2)
        self.up = nn.ConvTranspose2d(32, 32, 1)
        self.hidden = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + F.relu(block(x))
        x = F.relu(self.branches["pw"](self.branches["dw"](x)))
        x = self.up(self.down(x)).mean((2, 3))
        return self.head(F.dropout(F.relu(self.hidden(x)), training=self.training))


EXAMPLE = (3, 8, 8)
COVERED = ("stem.0", "blocks.0", "blocks.1", "branches.dw", "branches.pw", "down", "hidden", "head")


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a call could disturb, in a form that compares with `same`."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "parameters": [
            (name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()
        ],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "hooks": sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ),
        "rng": torch.random.get_rng_state(),
    }


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    tensors = zip([*a["state"].values(), a["rng"]], [*b["state"].values(), b["rng"]], strict=True)
    return all(a[k] == b[k] for k in ("modules", "parameters", "hooks")) and all(
        torch.equal(x, y) for x, y in tensors
    )
