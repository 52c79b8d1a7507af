"""The eigenbasis of factors: it takes them apart, and puts them together again."""

import pytest
import torch
from nets import convnet, images

from eigendamage_ext import ops
from eigendamage_ext.curvature import Eigen, Eigenbasis, Factors, eigenbasis, estimate_factors


def factors(**keywords) -> Factors:
    return estimate_factors(convnet(), [images(6)], progress=False, **keywords)


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_every_factor_is_its_eigenvalues_in_its_eigenvectors(kind):
    found = factors(kind=kind)
    basis = found.eigenbasis()
    assert basis.keys() == found.keys()
    for name, layer in found.items():
        for eigen, factor in ((basis[name].A, layer.A), (basis[name].G, layer.G)):
            assert isinstance(eigen, Eigen)
            assert eigen.values.shape == factor.shape[:-1] and eigen.vectors.shape == factor.shape
            assert (eigen.values >= 0).all() and (eigen.values.diff(dim=-1) >= 0).all()
            rebuilt = eigen.vectors @ torch.diag_embed(eigen.values) @ eigen.vectors.mT
            torch.testing.assert_close(rebuilt, factor, rtol=1e-12, atol=1e-13 * factor.abs().max().item())
            identity = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
            torch.testing.assert_close(eigen.vectors.mT @ eigen.vectors, identity, rtol=0, atol=1e-13)


def test_what_rounding_made_negative_is_zero():
    rank_one = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 6))
    shifted = rank_one - 1e-5 * torch.eye(5)
    basis = Eigenbasis.of({"layer": (shifted, rank_one)})
    assert torch.linalg.eigvalsh(shifted)[0] < 0
    assert (basis["layer"].A.values[:4] == 0).all()
    torch.testing.assert_close(basis["layer"].A.values[4], torch.tensor(55.0))


def test_all_layers_go_through_one_call_and_only_once(monkeypatch):
    calls = []

    def eigh(matrices, *, names):
        calls.append(dict(zip(names, matrices, strict=True)))
        return original(matrices, names=names)

    original = ops.eigh
    monkeypatch.setattr(eigenbasis.ops, "eigh", eigh)
    found = factors()
    assert found.eigenbasis() is found.eigenbasis()
    (matrices,) = calls
    assert list(matrices)[:5] == ["0.A", "0.G", "3.A[0]", "3.A[1]", "3.G[0]"]
    assert torch.equal(matrices["3.G[1]"], found["3"].G[1])
    assert torch.equal(matrices["8.A"], found["8"].A)
    assert len(matrices) == 2 + 4 + 12 + 2


def test_a_factor_that_is_not_finite_is_named():
    found = factors()
    found["3"].G[1, 0, 0] = torch.nan
    with pytest.raises(ops.EighError, match=r"3\.G\[1\] \(n = 3\): the input is not finite"):
        found.eigenbasis()


def test_no_layers_have_an_empty_basis():
    assert len(Eigenbasis.of({})) == 0
