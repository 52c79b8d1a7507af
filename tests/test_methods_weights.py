"""Scores of single weights against the constrained minimum on a dense Hessian."""

import pytest
import torch
from filter_cases import constrained, dense, positive

from eigendamage_ext.pruning.methods.weights import kronecker_obd, kronecker_obs, obd, obs


def test_obd_is_the_loss_of_zeroing_one_weight_and_nothing_else():
    weight, hessian = torch.randn(7, dtype=torch.float64), positive(7, 7)
    for q, score in enumerate(obd(weight, hessian)):
        delta = torch.zeros_like(weight)
        delta[q] = -weight[q]
        assert float(score) == pytest.approx(float(delta @ hessian @ delta), rel=1e-12)


def test_obs_is_the_loss_of_zeroing_one_weight_once_the_others_make_up_for_it():
    weight, hessian = torch.randn(7, dtype=torch.float64), positive(7, 7)
    for q, score in enumerate(obs(weight, hessian)):
        loss, _ = constrained(hessian, weight, torch.arange(7) == q)
        assert float(score) == pytest.approx(2 * loss, rel=1e-11)
    assert (obs(weight, hessian) <= obd(weight, hessian)).all()


def test_on_a_quadratic_obs_is_what_the_loss_itself_rises_by():
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, dtype=torch.float64)

    def loss(weight):
        return (x @ weight - y).square().mean()

    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    hessian = torch.autograd.functional.hessian(loss, best)
    for q, score in enumerate(obs(best, hessian)):
        others = torch.arange(5) != q
        again = torch.zeros_like(best)
        again[others] = torch.linalg.lstsq(x[:, others], y[:, None]).solution[:, 0]
        assert 0.5 * float(score) == pytest.approx(float(loss(again) - loss(best)), rel=1e-10)


@pytest.mark.parametrize("groups", [(), (3,)], ids=["one block", "three blocks"])
@pytest.mark.parametrize(("kronecker", "plain"), [(kronecker_obd, obd), (kronecker_obs, obs)])
def test_the_kronecker_forms_are_those_of_the_explicit_product(kronecker, plain, groups):
    weight = torch.randn(*groups, 3, 4, dtype=torch.float64)
    A, G = positive(*groups, 4, 4), positive(*groups, 3, 3)
    explicit = plain(weight.flatten(), dense(A.reshape(-1, 4, 4), G.reshape(-1, 3, 3)))
    torch.testing.assert_close(kronecker(weight, A, G).flatten(), explicit, rtol=1e-11, atol=0)


def test_a_hessian_that_is_not_positive_definite_is_refused():
    singular = torch.diag(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="obs: hessian must be positive definite"):
        obs(torch.ones(2), singular)
    with pytest.raises(ValueError, match="kronecker_obs: A must be positive definite"):
        kronecker_obs(torch.ones(2, 2), singular, torch.eye(2))
    with pytest.raises(ValueError, match="kronecker_obs: G must be positive definite"):
        kronecker_obs(torch.ones(2, 2), torch.eye(2), singular)
