"""The backward vectors against autograd's gradients and Hessians, and the draws against their laws."""

import pytest
import torch
import torch.nn.functional as F
from nets import labels

from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, Fisher, draw
from eigendamage_ext.curvature.uniform import _mix, uniform

LOSS_SUMS = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "mse": lambda z, y: ((z - y) ** 2).sum(),
    "bce_with_logits": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum"),
}


def logits(examples: int = 5, classes: int = 4) -> torch.Tensor:
    return torch.randn(examples, classes, dtype=torch.float64) * 2


@pytest.mark.parametrize("loss", LOSSES)
def test_the_empirical_vector_is_the_gradient_of_each_examples_own_loss(loss):
    z, y = logits(), labels(loss, 5)
    expected = torch.func.grad(LOSS_SUMS[loss])(z, y)
    (vector,) = Fisher(loss, "empirical").vectors(z, y, first=0)
    torch.testing.assert_close(vector, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_exact_vectors_are_a_root_of_the_hessian(loss):
    z, y = logits(), labels(loss, 5)
    vectors = torch.stack(list(Fisher(loss, "exact").vectors(z, None, first=0)))
    for n in range(5):
        hessian = torch.func.jacrev(torch.func.grad(LOSS_SUMS[loss]))(z[n : n + 1], y[n : n + 1]).reshape(
            4, 4
        )
        torch.testing.assert_close(vectors[:, n].mT @ vectors[:, n], hessian, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_drawn_vectors_are_gradients_at_the_drawn_labels(loss):
    z = logits()
    vectors = list(Fisher(loss, "mc", samples=3, seed=7).vectors(z, None, first=11))
    assert len(vectors) == 3
    for index, vector in enumerate(vectors):
        y = draw(loss, z, 7, 11, index)
        expected = torch.func.grad(LOSS_SUMS[loss])(z, y) / 3**0.5
        torch.testing.assert_close(vector, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_one_output_without_a_dimension_is_one_output(loss, fisher):
    z, y = logits(5, 1), labels(loss, 5, 1)
    chosen = Fisher(loss, fisher, samples=2)
    for flat, column in zip(chosen.vectors(z[:, 0], y[:, 0], 0), chosen.vectors(z, y, 0), strict=True):
        assert flat.shape == (5,)
        assert torch.equal(flat, column[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectors_have_the_dtype_of_the_logits(dtype):
    for fisher in FISHERS:
        for vector in Fisher("cross_entropy", fisher).vectors(
            logits().to(dtype), labels("cross_entropy", 5), 0
        ):
            assert vector.dtype == dtype


def test_uniform_numbers_are_those_of_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    ours = _mix(torch.tensor(1234567), torch.arange(4))
    assert [int(value) % 2**64 for value in ours] == published


def test_uniform_numbers_depend_on_their_coordinates_alone():
    whole = uniform(3, 0, 10, 5, 4)
    assert torch.equal(whole[6:], uniform(3, 6, 4, 5, 4))
    assert torch.equal(whole[:, :2], uniform(3, 0, 10, 5, 2))
    for other in (uniform(4, 0, 10, 5, 4), uniform(3, 1, 10, 5, 4), uniform(3, 0, 10, 6, 4)):
        assert not (whole == other).any()


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 + 5, -(2**70)])
def test_any_integer_is_a_seed(seed):
    u = uniform(seed, 0, 100, 0, 3)
    assert ((u > 0) & (u < 1)).all() and u.unique().numel() == 300


def test_uniform_numbers_are_uniform_and_uncorrelated_along_every_coordinate():
    n = 20_000
    for u in (
        uniform(0, 0, n, 0, 1).flatten(),
        uniform(0, 0, 1, 0, n).flatten(),
        torch.cat([uniform(seed, 0, 1, 0, 1) for seed in range(2000)]).flatten(),
        torch.cat([uniform(0, 0, 1, index, 1) for index in range(2000)]).flatten(),
    ):
        # Kolmogorov-Smirnov at a level of 1e-5, and the correlation of neighbours at 4.4 standard errors.
        ranks = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
        assert (u.sort().values - ranks).abs().max() < 2.47 / len(u) ** 0.5
        centred = u - 0.5
        assert ((centred[1:] * centred[:-1]).mean() * 12).abs() < 4.4 / len(u) ** 0.5


def test_drawn_classes_follow_the_softmax():
    z = torch.tensor([[0.0, 1.0, -30.0, 2.0, -800.0]], dtype=torch.float64).expand(40_000, 5)
    y = draw("cross_entropy", z, seed=1, first=0, index=0)
    assert torch.equal(y.sum(dim=1), torch.ones(40_000, dtype=torch.float64))
    p = z[0].softmax(0)
    error = (p * (1 - p) / 40_000).sqrt()
    assert ((y.mean(dim=0) - p).abs() <= 4.4 * error).all()
    assert y[:, 4].sum() == 0


def test_a_certain_class_is_always_drawn():
    for winner in range(3):
        z = torch.full((1000, 3), -2000.0, dtype=torch.float64)
        z[:, winner] = 0
        assert (draw("cross_entropy", z, 0, 0, 0).argmax(dim=1) == winner).all()
    assert (draw("cross_entropy", torch.randn(100, 1).double(), 0, 0, 0) == 1).all()


def test_drawn_targets_are_normal_with_variance_a_half():
    z = logits(1, 2).expand(20_000, 2)
    noise = draw("mse", z, seed=2, first=0, index=0) - z
    moments = [noise.mean(), (noise**2).mean() - 0.5, (noise**4).mean() - 0.75, noise.prod(dim=1).mean()]
    # Standard errors of the mean, of the second and the fourth moment, and of a product of two.
    errors = [(0.5 / 40_000) ** 0.5, (0.5 / 40_000) ** 0.5, (6 / 40_000) ** 0.5, (0.25 / 20_000) ** 0.5]
    for moment, error in zip(moments, errors, strict=True):
        assert moment.abs() < 4.4 * error


def test_drawn_bits_follow_the_sigmoid():
    z = torch.tensor([[-3.0, 0.0, 1.0, 900.0, -900.0]], dtype=torch.float64).expand(20_000, 5)
    y = draw("bce_with_logits", z, seed=3, first=0, index=0)
    assert ((y == 0) | (y == 1)).all()
    p = z[0].sigmoid()
    assert ((y.mean(dim=0) - p).abs() <= 4.4 * (p * (1 - p) / 20_000).sqrt()).all()
    correlation = torch.corrcoef(y[:, :3].T)[0, 1:]
    assert (correlation.abs() < 4.4 / 20_000**0.5).all()


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        ("cross_entropy", (5,)),
        ("cross_entropy", (5, 4, 3, 3)),
        ("mse", (5, 4, 3)),
        ("bce_with_logits", (5, 1, 1, 1)),
    ],
)
def test_logits_of_another_rank_are_refused_by_the_name_of_the_loss(loss, shape):
    with pytest.raises(
        ValueError, match=rf"logits for loss='{loss}' must have the shape .*; (bring|flatten) .*ed.Adapter"
    ):
        list(Fisher(loss, "mc").vectors(torch.zeros(shape), None, 0))


def test_more_than_a_thousand_exact_vectors_are_refused_with_the_count():
    assert Fisher("cross_entropy", "exact").count(torch.zeros(1, 1000)) == 1000
    with pytest.raises(ValueError, match=r"at most 1,000 backward vectors, got 1,001 .*; use fisher='mc'"):
        Fisher("cross_entropy", "exact").count(torch.zeros(1, 1001))
    assert Fisher("cross_entropy", "mc").count(torch.zeros(1, 1001)) == 1


def empirical(loss: str, targets: torch.Tensor | None) -> None:
    list(Fisher(loss, "empirical").vectors(logits(), targets, 0))


def test_missing_labels_are_refused():
    with pytest.raises(
        ValueError, match=r"must yield \(input, target\) for fisher='empirical', got inputs alone"
    ):
        empirical("cross_entropy", None)


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (torch.rand(5, 4), r"torch\.float32 \(5, 4\); pass soft labels .* as a loss of your own"),
        (torch.zeros(5), r"torch\.float32 \(5,\)"),
        (torch.zeros(5, dtype=torch.bool), r"torch\.bool \(5,\)"),
        (torch.zeros(5, 1, dtype=torch.int64), r"torch\.int64 \(5, 1\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(targets, got):
    with pytest.raises(ValueError, match=rf"must be class numbers, an integer tensor \(5,\), got {got}"):
        empirical("cross_entropy", targets)


@pytest.mark.parametrize(("label", "got"), [(4, "0 to 4"), (-1, "-1 to 0"), (-100, "-100 to 0")])
def test_labels_out_of_range_are_refused(label, got):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 4\), got {got}; ignore_index is not supported"):
        empirical("cross_entropy", torch.tensor([0, 0, label, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_type_is_a_label(dtype):
    y = torch.tensor([0, 1, 2, 3, 0])
    z = logits()
    expected = next(Fisher("cross_entropy", "empirical").vectors(z, y, 0))
    assert torch.equal(next(Fisher("cross_entropy", "empirical").vectors(z, y.to(dtype), 0)), expected)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
@pytest.mark.parametrize("targets", [torch.zeros(5, 1), torch.zeros(5), torch.zeros(5, 4, dtype=torch.int64)])
def test_targets_that_would_broadcast_or_are_whole_numbers_are_refused(loss, targets):
    with pytest.raises(
        ValueError, match=rf"targets for loss='{loss}' must be floating point of the logits' shape"
    ):
        empirical(loss, targets)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_probabilities_out_of_range_are_refused(value):
    targets = torch.full((5, 4), 0.5)
    targets[2, 1] = value
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got .*{value}"):
        empirical("bce_with_logits", targets)
