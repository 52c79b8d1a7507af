"""A factor pass leaves the model and the random state as they were, however it ends."""

import itertools
import weakref

import pytest
import torch
from nets import convnet, images, labels
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eigendamage_ext.curvature import diagonal, ekfac, estimate_factors, gradient, moments

HOOKS = [
    name
    for name in vars(nn.Module())
    if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
]


def busy_model() -> nn.Sequential:
    """A model in the middle of training: mixed modes and flags, gradients, hooks, dropout."""
    model = nn.Sequential(*convnet(), nn.Dropout(0.5))
    nn.functional.cross_entropy(model(images(4)), labels("cross_entropy", 4)).backward()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = None
    for module in (model[0], model[3], model[8]):
        module.register_forward_hook(lambda module, args, output: None)
        module.register_forward_pre_hook(lambda module, args: None)
    model[8].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


SECOND_PASSES = {  # with the function that each calls for every layer and gradient
    "second_moments": (ekfac, "add_squares"),
    "diagonal": (diagonal, "add_squares"),
    "gradients": (gradient, "add_gradient"),
}


def second_passes(model: nn.Module, loader, *, fisher: str, progress: bool) -> None:
    """The first pass on other data and all second ones."""
    data = [(torch.linspace(-1, 1, 378, dtype=torch.float64).reshape(3, 3, 6, 7), torch.arange(3))]
    factors = estimate_factors(model, data, fisher=fisher, progress=progress)
    for name in SECOND_PASSES:
        getattr(factors, name)(model, loader, progress=progress)


class Snapshot:
    """Everything a pass might disturb, by identity and by value."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        named = [*model.named_parameters(), *model.named_buffers()]
        self.tensors = [(name, tensor, tensor.detach().clone()) for name, tensor in named]
        self.gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        self.flags = [p.requires_grad for p in model.parameters()]
        self.modes = [module.training for module in model.modules()]
        self.hooks = self.all_hooks()
        self.random = torch.get_rng_state()
        self.grad_mode = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    def all_hooks(self) -> list[list[object]]:
        return [[*getattr(module, name).items()] for module in self.model.modules() for name in HOOKS]

    def check(self) -> None:
        assert len(HOOKS) >= 6
        now = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        for name, tensor, value in self.tensors:
            assert now[name] is tensor and torch.equal(tensor, value), name
        for parameter, grad, value in self.gradients:
            assert parameter.grad is grad and (grad is None or torch.equal(grad, value))
        assert [p.requires_grad for p in self.model.parameters()] == self.flags
        assert [module.training for module in self.model.modules()] == self.modes
        assert self.all_hooks() == self.hooks
        assert torch.equal(torch.get_rng_state(), self.random)
        assert (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        ) == self.grad_mode


@pytest.mark.parametrize("run", [estimate_factors, second_passes])
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_a_pass_leaves_no_trace(fisher, run):
    model = busy_model()
    data = TensorDataset(images(7), labels("cross_entropy", 7))
    loader = DataLoader(data, batch_size=3, shuffle=True)
    before = Snapshot(model)
    run(model, loader, fisher=fisher, progress=False)
    before.check()
    iter(loader)
    assert not torch.equal(torch.get_rng_state(), before.random), "a DataLoader disturbs the random state"


class Fail(torch.autograd.Function):
    """The identity; raises in the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, error: BaseException) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        raise ctx.error


class FailIn(nn.Module):
    """Raises in the second batch: going forward or coming back."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error, self.batches = where, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches < 2:
            return x
        if self.where == "forward":
            raise self.error
        return Fail.apply(x, self.error)


@pytest.mark.parametrize(
    "error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=["error", "interrupt"]
)
@pytest.mark.parametrize("where", ["loader", "forward", "backward", "input", "gradient"])
def test_a_pass_that_breaks_off_leaves_no_trace(where, error, monkeypatch):
    model = busy_model()
    if where in ("forward", "backward"):
        model.insert(5, FailIn(where, error))
    elif where in ("input", "gradient"):
        # In the second batch; each has three convolutions' inputs, and one linear's with four gradients.
        name, last = ("channel_covariance", 5) if where == "input" else ("covariance", 8)
        calls, original = itertools.count(1), getattr(moments.ops, name)

        def break_off(*args, **keywords):
            if next(calls) == last:
                raise error
            return original(*args, **keywords)

        monkeypatch.setattr(moments.ops, name, break_off)

    def loader():
        for index in range(3):
            torch.rand(1)
            if where == "loader" and index == 1:
                raise error
            yield images(3), labels("cross_entropy", 3)

    before = Snapshot(model)
    with pytest.raises(type(error), match="stop"):
        estimate_factors(model, loader(), progress=False)
    before.check()


@pytest.mark.parametrize(
    "error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=["error", "interrupt"]
)
@pytest.mark.parametrize("where", ["loader", "forward", "backward", "gradient"])
@pytest.mark.parametrize("second_pass", SECOND_PASSES)
def test_a_second_pass_that_breaks_off_leaves_no_trace_and_no_result(second_pass, where, error, monkeypatch):
    model = busy_model()
    model.insert(5, FailIn(where, error) if where in ("forward", "backward") else nn.Identity())
    factors = estimate_factors(model, [images(3)], progress=False)
    layers, settings = dict(factors.layers), factors.settings
    if where == "gradient":  # in the second batch
        module, name = SECOND_PASSES[second_pass]
        calls, original = itertools.count(1), getattr(module, name)

        def break_off(*args, **keywords):
            if next(calls) == 6:
                raise error
            original(*args, **keywords)

        monkeypatch.setattr(module, name, break_off)

    def loader():
        for index in range(3):
            torch.rand(1)
            if where == "loader" and index == 1:
                raise error
            yield images(3), labels("cross_entropy", 3)

    before = Snapshot(model)
    with pytest.raises(type(error), match="stop"):
        getattr(factors, second_pass)(model, loader(), progress=False)
    before.check()
    assert factors.layers == layers and factors.settings == settings


def test_statistics_and_dropout_are_those_of_eval_mode():
    model, x, y = convnet(), images(6), labels("cross_entropy", 6)
    model.insert(8, nn.Dropout(0.9))
    trained = estimate_factors(model.train(), [(x, y)], fisher="empirical", progress=False)
    evaluated = estimate_factors(model.eval(), [(x, y)], fisher="empirical", progress=False)
    for name in trained:
        assert torch.equal(trained[name].A, evaluated[name].A)
        assert torch.equal(trained[name].G, evaluated[name].G)


class Counter(nn.Module):
    """Counts its calls in a buffer and replaces another, in eval mode too; merges on eval()."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))
        self.merged = False

    def train(self, mode: bool = True) -> "Counter":
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean()
        return x


def test_buffers_of_any_module_are_put_back_and_no_train_method_is_called():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counter(), nn.Flatten(), nn.Linear(80, 4)).double()
    batches = [images(2), images(3)]
    before = Snapshot(model)
    estimate_factors(model, batches, progress=False)
    before.check()
    assert not model[1].merged


class Gate(nn.Module):
    """The graph keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_callers_context_does_not_matter(context):
    model, x, y = nn.Sequential(Gate(), *convnet()).float(), images(5).float(), labels("cross_entropy", 5)
    expected = estimate_factors(model, [(x, y)], progress=False)
    before = Snapshot(model)
    with context():
        inside = Snapshot(model)
        found = estimate_factors(model, [(x * 1, y)], progress=False)
        inside.check()
        found.eigenbasis()
    before.check()
    for name in expected:
        assert torch.equal(found[name].A, expected[name].A) and torch.equal(found[name].G, expected[name].G)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_the_users_hooks_run_and_may_replace_outputs():
    model, x, y = convnet(), images(3), labels("cross_entropy", 3)
    explicit = nn.Sequential(*model[:4], Double(), nn.ReLU(), *model[5:])
    expected = estimate_factors(explicit, [(x, y)], fisher="empirical", progress=False)
    seen = []

    def double(module, args, output):
        seen.append(output.shape)
        return output * 2

    model[3].register_forward_hook(double)
    hooked = estimate_factors(model, [(x, y)], fisher="empirical", progress=False)
    assert len(seen) == 1
    for ours, theirs in zip(hooked.values(), expected.values(), strict=True):
        torch.testing.assert_close(ours.G, theirs.G, rtol=1e-12, atol=0)


def test_the_input_of_a_layer_is_not_kept():
    inputs = []

    class Probe(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert inputs[-1]() is None
            return x

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), Probe())
    model[1].register_forward_hook(lambda module, args, output: inputs.append(weakref.ref(args[0])))
    estimate_factors(model, [torch.randn(2, 3)] * 2, progress=False)
    assert len(inputs) == 2
