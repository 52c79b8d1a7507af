"""Linears whose input does not start with the examples: windows, flattened tokens, experts, other orders."""

from collections.abc import Callable

import pytest
import torch
from dense_fisher import weight_fisher
from torch import Tensor, nn

from eigendamage_ext import curvature
from eigendamage_ext.curvature import Factors

Y = torch.tensor([0, 2, 1, 1])


class Net(nn.Module):
    """A layer "a" on the positions of ``(N, 6, 3)``, then their mean; a subclass says what "a" sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
        self.double()

    def folded(self, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        return call(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.folded(x, self.a).tanh().mean(dim=1))


class Windows(Net):
    def folded(self, x, call):
        return call(x.unflatten(1, (3, 2)).flatten(0, 1)).unflatten(0, (-1, 3)).flatten(1, 2)


class Tokens(Net):
    def folded(self, x, call):
        return call(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Pixels(Net):
    """Channels last: ``(N, H, W, c)``."""

    def folded(self, x, call):
        return call(x.unflatten(1, (3, 2))).flatten(1, 2)


class WindowsFirst(Net):
    """The first window of every example, then the second."""

    def folded(self, x, call):
        return torch.cat(call(torch.cat(x.chunk(2, 1))).chunk(2), 1)


class PositionsFirst(Net):
    def folded(self, x, call):
        return call(x.mT.contiguous().mT.transpose(0, 1)).transpose(0, 1)


class Pairs(Net):
    """Windows of two examples that have changed places."""

    def folded(self, x, call):
        order = torch.arange(len(x)) ^ 1 if len(x) > 1 else torch.arange(1)
        return Windows.folded(self, x[order], call)[order]


class Experts(Net):
    """An expert sees the positions that come to it."""

    def folded(self, x, call):
        chosen = x[..., 0] > 0
        return torch.zeros(*x.shape[:2], 4, dtype=x.dtype).masked_scatter(chosen[..., None], call(x[chosen]))


class TwoExperts(Experts):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(3, 4).double()

    def folded(self, x, call):
        return super().folded(x, call) + super().folded(-x, self.c)


def data(positions: int = 6) -> Tensor:
    return torch.randn(4, positions, 3, dtype=torch.float64)


def estimate(model: nn.Module, x: Tensor, **keywords) -> Factors:
    return curvature.estimate_factors(model, [x], fisher="exact", progress=False, **keywords)


def unfolded(model: Net) -> Net:
    """The model that does the same with the examples first."""
    plain = Net()
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("net", [Windows, Tokens, Pixels, WindowsFirst, PositionsFirst, Pairs])
def test_factors_are_sums_over_rows_whatever_their_order(net, kind):
    model, x = net(), data()
    plain = unfolded(model)
    torch.testing.assert_close(model(x), plain(x))
    ours, theirs = estimate(model, x, kind=kind)["a"], estimate(plain, x, kind=kind)["a"]
    rows = x.reshape(24, 3)
    rows = torch.cat([rows, torch.ones(24, 1)], 1) if kind == "patch" else rows
    torch.testing.assert_close(ours.A, rows.mT @ rows / 24)
    torch.testing.assert_close(ours.G, theirs.G)
    assert ours.count == 4


@pytest.mark.parametrize("batches", [(4,), (1, 3), (2, 2)])
@pytest.mark.parametrize("net", [Windows, Tokens, Pixels])
def test_rows_are_grouped_by_example(net, batches):
    model, x = net(), data()
    factors = estimate(model, x)
    dense = weight_fisher(model, "a", x, Y, "cross_entropy", "exact")
    factors.diagonal(model, x.split(batches), progress=False)
    torch.testing.assert_close(factors["a"].diagonal.flatten(), dense.diagonal())
    factors.second_moments(model, x.split(batches), progress=False)
    basis = factors.eigenbasis()["a"]
    block = dense.unflatten(0, (4, 4)).unflatten(2, (4, 4))[:, :3, :, :3].flatten(2).flatten(0, 1)
    Q = torch.kron(basis.G.vectors, basis.A.vectors)
    torch.testing.assert_close(factors["a"].S.flatten(), (Q.mT @ block @ Q).diagonal())


@pytest.mark.parametrize("net", [Windows, Tokens, Pixels])
def test_reduce_averages_over_the_rows_of_an_example(net):
    model, x = net(), data()
    ours, theirs = (estimate(m, x, weight_sharing="reduce")["a"] for m in (model, unfolded(model)))
    torch.testing.assert_close(ours.A, theirs.A)
    torch.testing.assert_close(ours.G, theirs.G)


ORDER = "the rows of its input do not lie one example after the other"


@pytest.mark.parametrize(
    ("net", "positions", "reason"),
    [
        (WindowsFirst, 6, ORDER),
        (Pairs, 6, ORDER),
        (PositionsFirst, 8, ORDER),
        (PositionsFirst, 4, ORDER),  # as many positions as examples
        (PositionsFirst, 6, "its input starts with 6 rows where the batch has 4 examples"),
    ],
)
def test_other_orders_are_refused_by_name(net, positions, reason):
    model, x = net(), data(positions)
    factors = estimate(model, x, weight_sharing="reduce")
    assert factors.skipped["a"].startswith(reason) and list(factors) == ["b"]
    factors = estimate(model, x)
    for measure in (factors.diagonal, factors.second_moments):
        with pytest.raises(ValueError, match=f"a gradient for each example, got 'a': {reason}"):
            measure(model, [x], progress=False)
    factors.gradients(model, [(x, Y)], progress=False)  # a sum, which has no order
    assert list(factors) == ["a", "b"]


def test_an_expert_has_the_factors_of_the_rows_that_come_to_it():
    model, x = Experts(), data()
    chosen = x[x[..., 0] > 0]
    factors = estimate(model, x)
    torch.testing.assert_close(factors["a"].A, chosen.mT @ chosen / len(chosen))
    hidden = model.a(chosen).detach().requires_grad_()
    logits = model.b(model.folded(x, lambda rows: hidden).tanh().mean(dim=1))
    p = logits.softmax(1).detach()
    G = torch.zeros(4, 4, dtype=x.dtype)
    for label, unit in enumerate(torch.eye(3, dtype=x.dtype)):
        vector = p[:, label, None].sqrt() * (p - unit)
        [g] = torch.autograd.grad(logits, hidden, vector, retain_graph=True)
        G += g.mT @ g / 4
    torch.testing.assert_close(factors["a"].G, G)
    with pytest.raises(ValueError, match=rf"'a': (its input starts with|{ORDER})"):
        factors.diagonal(model, [x], progress=False)


def test_an_expert_to_whom_as_many_rows_come_as_there_are_examples_is_refused_too():
    model, x = TwoExperts(), data().abs().neg()
    x[0, :4, 0] *= -1  # all of one example
    factors = estimate(model, x)
    with pytest.raises(ValueError, match=f"'a': {ORDER}; 'c': {ORDER}"):
        factors.diagonal(model, [x], progress=False)


class Table(Net):
    """Adds what a layer makes of a table of positions, which all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.places = nn.Linear(2, 4).double(), torch.randn(6, 2, dtype=torch.float64)

    def folded(self, x, call):
        return call(x) + self.c(self.places)


@pytest.mark.parametrize("net", [Table, Windows, PositionsFirst])
def test_rows_that_examples_share_are_refused_by_name(net):
    model, x = net(), data()
    factors = estimate(model, x)
    shared = {"c": "rows of its input belong to several examples, whose gradients cannot be told apart"}
    assert factors.skipped == (shared if net is Table else {})
    p = model(x).softmax(1)
    torch.testing.assert_close(factors["b"].G, (p.diag_embed() - p[:, :, None] * p[:, None]).mean(dim=0))


def test_the_gradient_of_shared_rows_is_a_sum_like_any_other():
    model, x = Table(), data()
    factors = curvature.estimate_factors(model, [x[:1]], progress=False)  # of one example nothing is shared
    factors.gradients(model, [(x, Y)], progress=False)
    [expected] = torch.autograd.grad(nn.functional.cross_entropy(model(x), Y), [model.c.weight])
    torch.testing.assert_close(factors["c"].gradient[:, :-1], expected)
    with pytest.raises(ValueError, match="'c': its input starts with 6 rows where the batch has 4 examples"):
        factors.diagonal(model, [x], progress=False)


def test_gradients_that_are_not_numbers_are_told_as_such():
    class Root(Windows):
        def folded(self, x, call):
            y = super().folded(x, call)
            return y + (0 * y).sqrt()  # infinitely steep

    model, x = Root(), data()
    with pytest.raises(ValueError, match="gradient of layer 'a' must be finite"):
        estimate(model, x, weight_sharing="reduce")
