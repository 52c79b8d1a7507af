"""Factors against libraries from PyPI that share no code with this one."""

import pytest
import torch
from nets import images, labels, mlp
from torch import Tensor, nn

from eigendamage_ext.curvature import estimate_factors

N, CLASSES = 8, 4  # a power of two: einconv divides by N in float32


def small_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, (2, 3), dilation=(1, 1), padding=(1, 0), bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    ).double()


def shared_mlp() -> nn.Sequential:
    """Linears that see a sequence, then pool it."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=1)

    return nn.Sequential(*mlp(3, 5, 4), Pool(), nn.Linear(4, CLASSES).double())


CASES = {
    "mlp": (lambda: mlp(3, 5, CLASSES), lambda: torch.randn(N, 3, dtype=torch.float64)),
    "convnet": (small_convnet, lambda: images(N)),
    "sequence": (shared_mlp, lambda: torch.randn(N, 7, 3, dtype=torch.float64)),
}
LOSSES = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss, "bce_with_logits": nn.BCEWithLogitsLoss}


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_curvlinops(case, loss, fisher, weight_sharing):
    """Equal for cross entropy; for the others their mean runs over the C outputs too: their G is ours / C."""
    curvlinops = pytest.importorskip("curvlinops")
    make, batch = CASES[case]
    model, x, y = make(), batch(), labels(loss, N, CLASSES)
    if loss == "bce_with_logits":
        y = y.round()  # they take bits alone
    model(x)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    theirs = curvlinops.KFACLinearOperator(
        model,
        LOSSES[loss](),
        list(model.parameters()),
        data,
        fisher_type={"exact": "type-2", "empirical": "empirical"}[fisher],
        kfac_approx=weight_sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    theirs.compute_kronecker_factors()
    ours = estimate_factors(
        model, data, loss=loss, fisher=fisher, kind="patch", weight_sharing=weight_sharing, progress=False
    )
    assert list(ours) == list(theirs._input_covariances)
    scale = 1 if loss == "cross_entropy" else CLASSES
    for name, layer in ours.items():
        torch.testing.assert_close(layer.A, theirs._input_covariances[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            layer.G, scale * theirs._gradient_covariances[name], rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("case", CASES)
def test_curvlinops_eigenvalue_corrections(case, fisher, weight_sharing):
    """In our eigenbasis, as a matrix may have many. Theirs too ignore weight sharing once they have it."""
    curvlinops = pytest.importorskip("curvlinops")
    make, batch = CASES[case]
    model, x, y = make(), batch(), labels("cross_entropy", N, CLASSES)
    model(x)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    ours = estimate_factors(
        model, data, fisher=fisher, kind="patch", weight_sharing=weight_sharing, progress=False
    )
    moments = ours.second_moments(model, data, progress=False)
    theirs = curvlinops.EKFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        fisher_type={"exact": "type-2", "empirical": "empirical"}[fisher],
        kfac_approx=weight_sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    for name, basis in ours.eigenbasis().items():
        theirs._input_covariances_eigenvectors[name] = basis.A.vectors
        theirs._gradient_covariances_eigenvectors[name] = basis.G.vectors
    theirs.compute_eigenvalue_correction()
    assert len(moments) == len(theirs._corrected_eigenvalues)
    for name, S in moments.items():
        found = theirs._corrected_eigenvalues[name]
        found = found if isinstance(found, Tensor) else next(iter(found.values()))  # a layer without a bias
        torch.testing.assert_close(S, found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_einconv(groups):
    """Their sum over positions is not divided by T, and they know no bias: T times ours."""
    expressions = pytest.importorskip("einconv.expressions.convNd_kfc")
    conv = nn.Conv2d(
        4, 8, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), groups=groups, bias=False
    ).double()
    x = torch.randn(N, 4, 7, 6, dtype=torch.float64)
    positions = conv(x)[0, 0].numel()
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(8 * positions, 3).double())
    ours = estimate_factors(model, [x], kind="patch", layers="0", progress=False)["0"].A
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups
    equation, operands, shape = expressions.einsum_expression(x, *geometry)
    theirs = torch.einsum(equation, *operands).reshape(shape)
    torch.testing.assert_close(positions * ours.reshape(shape), theirs, rtol=1e-10, atol=1e-12)
