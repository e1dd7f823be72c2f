"""Sardana et al. 2023 (arXiv:2401.00448): the paper's examples, and brute force along the contour of equal loss."""

import dataclasses
import math

import pytest

from chinchilla_ds.budget.laws.inference_demand import optimal_with_inference
from chinchilla_ds.budget.laws.lookup import LAWS, SurfaceLaw, get_law
from chinchilla_ds.errors import PlanError

SURFACES = [law for law in LAWS.values() if isinstance(law, SurfaceLaw)]


def loss_of_optimal(*, law: SurfaceLaw, num_params: float) -> float:
    """Return the loss of the compute-optimal model of that size: the quality of a Chinchilla-optimal 30B, say."""
    best = law.optimal(compute_budget_flops=law.budget_for_params(num_params=num_params))
    return law.loss(num_params=best.num_params, num_tokens=best.num_tokens)


@pytest.mark.parametrize(
    ("quality_of", "served", "num_params", "num_tokens"),
    [(30e9, 5e12, 16.41e9, 3.265e12), (70e9, 10e12, 41.6e9, 7.92e12)],
)
def test_the_examples_of_the_paper(quality_of: float, served: float, num_params: float, num_tokens: float) -> None:
    law = get_law("sardana2024")
    assert isinstance(law, SurfaceLaw)
    best = optimal_with_inference(
        law=law, loss=loss_of_optimal(law=law, num_params=quality_of), inference_tokens=served
    )
    assert best.num_params == pytest.approx(num_params, rel=0.005)
    assert best.num_tokens == pytest.approx(num_tokens, rel=0.005)


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
@pytest.mark.parametrize("served", [1e10, 1e12, 1e15])
def test_no_other_model_of_that_loss_is_cheaper(law: SurfaceLaw, served: float) -> None:
    loss = loss_of_optimal(law=law, num_params=7e9)
    best = optimal_with_inference(law=law, loss=loss, inference_tokens=served)
    assert law.loss(num_params=best.num_params, num_tokens=best.num_tokens) == pytest.approx(loss, rel=1e-12)
    total_flops = best.train_flops + best.inference_flops
    assert total_flops == pytest.approx(best.num_params * (6 * best.num_tokens + 2 * served))
    for factor in (0.98, 0.999, 1.001, 1.02, 2):
        num_params = factor * best.num_params
        reducible = (loss - law.irreducible_loss) ** (1 / law.outer_exponent)
        rest = reducible - law.params_coefficient * num_params**-law.alpha
        if rest <= 0:  # no number of tokens reaches the loss
            continue
        num_tokens = (law.tokens_coefficient / rest) ** (1 / law.beta)
        assert num_params * (6 * num_tokens + 2 * served) > total_flops


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
def test_without_demand_it_is_the_compute_optimal_model(law: SurfaceLaw) -> None:
    best = optimal_with_inference(law=law, loss=loss_of_optimal(law=law, num_params=7e9), inference_tokens=0)
    plain = law.optimal(compute_budget_flops=law.budget_for_params(num_params=7e9))
    assert (best.num_params, best.num_tokens) == pytest.approx((plain.num_params, plain.num_tokens))
    assert best.inference_flops == 0
    assert best.saved_flops == pytest.approx(0, abs=1e-9 * best.train_flops)


def test_the_more_is_served_the_smaller_and_the_more_is_saved() -> None:
    law = get_law("besiroglu2024")
    assert isinstance(law, SurfaceLaw)
    loss = loss_of_optimal(law=law, num_params=7e9)
    found = [optimal_with_inference(law=law, loss=loss, inference_tokens=served) for served in (1e11, 1e12, 1e14, 1e20)]
    assert [one.num_params for one in found] == sorted((one.num_params for one in found), reverse=True)
    assert [one.saved_flops for one in found] == sorted(one.saved_flops for one in found)
    least = (law.params_coefficient / (loss - law.irreducible_loss)) ** (1 / law.alpha)
    assert found[-1].num_params == pytest.approx(least, rel=0.02)


def test_a_loss_below_the_irreducible_one_is_refused() -> None:
    law = dataclasses.replace(LAWS["besiroglu2024"])
    assert isinstance(law, SurfaceLaw)
    with pytest.raises(PlanError, match=r"1\.8 nats per token.*irreducible loss of 1\.817"):
        optimal_with_inference(law=law, loss=1.8, inference_tokens=math.inf)
