"""Networks whose filters are tied together in the ways that can be cut."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG


class Dense(nn.Module):
    """DenseNet-like: every layer reads all channels made before it, behind a batch norm of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 3, 3, padding=1)
        self.transition = nn.Conv2d(10, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.head(F.relu(self.transition(F.avg_pool2d(x, 2))).mean((2, 3)))


class Mobile(nn.Module):
    """Inverted residuals with depthwise convolutions and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.project = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        x = x + self.project(y * F.hardsigmoid(gate))
        return self.head(x.flatten(2).mean(2))


class Transformer(nn.Module):
    """Tokens ``(N, T, 6)`` with a residual stream behind layer norms: only what is inside the MLP can go."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 6, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


class Split(nn.Module):
    """A concatenation in a residual sum: the filters of one layer fall into two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(3, 9, 1)
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 1)
        self.circular = nn.Conv2d(9, 6, 3, padding=1, padding_mode="circular")
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)
        return self.head(F.leaky_relu(self.circular(F.relu(x))).mean((2, 3)))


class TwoScales(nn.Module):
    """The image and two maps of different sizes, flattened one by one, concatenated and read by a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.head = nn.Linear(3 * 64 + 4 * 64 + 5 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = x, F.relu(self.fine(x)), F.max_pool2d(self.coarse(x), 2).flatten(2)
        return self.head(F.relu(torch.cat([y.flatten(1) for y in maps], 1)))


def flattened() -> nn.Module:
    """Pixels and channels flattened into a Linear, a BatchNorm1d behind it, a reshape more on the way."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1),
        nn.PReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(2),
        nn.Flatten(1),
        nn.Linear(24, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Unflatten(1, (-1, 1, 1)),
        nn.Flatten(),
        nn.Linear(7, 5),
    )


IMAGE, TOKENS = (3, 8, 8), (4, 6)
NETS = {
    "residual": (lambda: ResNet(8, (4, 6, 8), num_classes=5), IMAGE),
    "residual A": (lambda: ResNet(14, (4, 6, 8), num_classes=5, shortcut="A"), IMAGE),
    "preresidual": (lambda: PreResNet(11, (4, 6, 8), num_classes=5), IMAGE),
    "vgg": (lambda: VGG(11, (4, 5, 6, 7, 8), num_classes=5), (3, 16, 16)),
    "dense": (Dense, IMAGE),
    "mobile": (Mobile, IMAGE),
    "split": (Split, IMAGE),
    "two scales": (TwoScales, IMAGE),
    "flattened": (flattened, IMAGE),
    "transformer": (Transformer, TOKENS),
}


def coupled_net(name: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 and eval mode, batch norms no identities, and three examples."""
    build, shape = NETS[name]
    net = build().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return net, torch.randn(3, *shape, dtype=torch.float64)
