"""A whole factor pass over the wide ResNet32, against its training step and other ways to the same factors.

A batch of 64 images of 32×32 pixels goes forward and back once, with the gradients at given labels. All
contestants run in eval mode; what they compute is compared on a small network in float64 first.
"""

import copy
import functools
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.contest import Contest, Run
from eigendamage_ext.curvature import estimate_factors
from eigendamage_ext.models.resnet import ResNet

Pairs = dict[str, tuple[Tensor, Tensor]]  # A and G by layer


def ours(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> Pairs:
    """One call of `estimate_factors`."""
    factors = estimate_factors(model, [(x, y)], fisher="empirical", kind=kind, progress=False)
    return {name: (layer.A, layer.G) for name, layer in factors.items()}


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Forward and backward pass with weight gradients."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def original(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> Pairs:
    """The original implementation's way: a training step, im2col in the hooks, ``aᵀa`` for each layer."""
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def on_gradient(name: str, gradient: Tensor) -> None:
        rows = gradient.movedim(1, -1).reshape(-1, gradient.shape[1])
        gradients[name] = rows.t() @ (rows / len(x))

    def on_input(name: str, module: Any, args: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            im2col = baselines.channel_im2col if kind == "channel" else baselines.patch_unfold
            geometry = module.kernel_size[0], module.stride[0], module.padding[0], module.dilation[0]
            inputs[name] = im2col(args[0].detach(), *geometry)
        else:
            rows = args[0].detach()
            if kind == "patch":
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            inputs[name] = rows.t() @ (rows / len(rows))
        output.register_hook(partial(on_gradient, name))

    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    hooks = [module.register_forward_hook(partial(on_input, name)) for name, module in layers.items()]
    model.zero_grad()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return {name: (inputs[name], gradients[name]) for name in layers}


def curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Pairs]:
    """The factors of curvlinops' KFAC, of kind "patch"; no inverses."""
    from curvlinops import KFACLinearOperator

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    operator = KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        [parameter for layer in layers for parameter in layer.parameters()],
        [(x, y)],
        fisher_type="empirical",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )

    def run() -> Pairs:
        A, G = operator._input_covariances, operator._gradient_covariances
        A.clear(), G.clear()
        operator.compute_kronecker_factors()
        return {name: (A[name], G[name]) for name in A}

    return run


def kronfluence(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Pairs]:
    """The factors of kronfluence, of kind "patch"; its G is a mean over positions too, here it is the sum."""
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    class Classify(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task, state = Classify(), State(cpu=x.is_cpu)
    settings = FactorArguments(
        use_empirical_fisher=True, activation_covariance_dtype=x.dtype, gradient_covariance_dtype=x.dtype
    )
    tracked = prepare_model(copy.deepcopy(model), task)

    def run() -> Pairs:
        _, found = fit_covariance_matrices_with_loader(
            tracked, state, task, [(x, y)], settings, disable_tqdm=True
        )
        rows = found["num_activation_covariance_processed"]
        A, G = found["activation_covariance"], found["gradient_covariance"]
        return {name: (A[name] / rows[name], G[name] / len(x)) for name in A}

    return run


def contestants(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> dict[str, Run]:
    """``ours``, and what gives the same factors."""
    found: dict[str, Run] = {
        "ours": lambda: ours(model, x, y, kind),
        "the original's way": lambda: original(model, x, y, kind),
    }
    for library in (curvlinops, kronfluence) if kind == "patch" else ():
        with suppress(ImportError):
            found[library.__name__] = library(model, x, y)
    return found


@functools.cache
def check(kind: str, device: str = "cpu") -> None:
    """Every contestant's factors of a small network, in float64."""
    torch.manual_seed(0)
    model = ResNet(depth=8, widths=(4, 6, 8), num_classes=10, shortcut="B").to(device, torch.float64).eval()
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(10, (6,))
    x, y = x.to(device), y.to(device)
    found = {name: run() for name, run in contestants(model, x, y, kind).items()}
    expected = found.pop("ours")
    for name, factors in found.items():
        assert factors.keys() == expected.keys(), name
        for layer, pair in factors.items():
            torch.testing.assert_close(pair, expected[layer], rtol=1e-9, atol=1e-12)


def wide_resnet32() -> nn.Module:
    return ResNet(depth=32, widths=(64, 128, 256), num_classes=10, shortcut="B")


def prepare(
    kind: str,
    against: str,
    device: str = "cpu",
    network: Callable[[], nn.Module] = wide_resnet32,
    examples: int = 64,
) -> Contest:
    """A network's factors, by default the wide ResNet32's, after a `check`."""
    check(kind, device)
    model = network().to(device).eval()
    x, y = torch.randn(examples, 3, 32, 32, device=device), torch.randint(10, (examples,), device=device)
    others = contestants(model, x, y, kind)
    run = others.pop("ours")
    if against == "its network":
        return Contest("factor_pass", kind, run, {"forward + backward": lambda: training_step(model, x, y)})
    return Contest("factor_pass", f"{kind}, {against}", run, others, least_rounds=1)


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("against", ["its network", "other ways"])
def test_factor_pass(contest: Callable[[Contest], None], kind: str, against: str) -> None:
    contest(prepare(kind, against))
