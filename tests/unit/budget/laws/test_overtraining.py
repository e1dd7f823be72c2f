"""What smaller models cost: the loss formula itself is the oracle, and a published rule of thumb."""

import dataclasses

import pytest

from chinchilla_ds.budget.laws.lookup import LAWS, SurfaceLaw
from chinchilla_ds.budget.laws.overtraining import SIZE_FACTORS, overtraining_curve

SURFACES = [law for law in LAWS.values() if isinstance(law, SurfaceLaw)]


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
@pytest.mark.parametrize("outer_exponent", [None, 0.5])
def test_the_curve_is_that_of_the_loss(law: SurfaceLaw, outer_exponent: float | None) -> None:
    if outer_exponent is not None:
        law = dataclasses.replace(law, outer_exponent=outer_exponent)
    budget = 1e21
    best = law.optimal(compute_budget_flops=budget)
    rows = overtraining_curve(law=law, compute_budget_flops=budget)
    assert tuple(row.size_factor for row in rows) == SIZE_FACTORS
    for row in rows:
        assert row.num_params == pytest.approx(row.size_factor * best.num_params)
        assert 6 * row.num_params * row.tokens_at_equal_compute == pytest.approx(budget)
        at_equal_compute = law.loss(num_params=row.num_params, num_tokens=row.tokens_at_equal_compute)
        assert row.loss_at_equal_compute == pytest.approx(at_equal_compute)
        assert row.loss_increase == pytest.approx(at_equal_compute - best.loss)
        if row.tokens_at_equal_loss is None:
            assert law.loss(num_params=row.num_params, num_tokens=1e300) >= best.loss
            assert row.compute_ratio is None
            continue
        reached = law.loss(num_params=row.num_params, num_tokens=row.tokens_at_equal_loss)
        assert reached == pytest.approx(best.loss, rel=1e-12)
        assert row.compute_ratio == pytest.approx(6 * row.num_params * row.tokens_at_equal_loss / budget)


def test_the_optimum_itself_costs_nothing() -> None:
    row = overtraining_curve(law=SURFACES[0], compute_budget_flops=1e21, size_factors=(1.0,))[0]
    assert row.compute_ratio == pytest.approx(1)
    assert row.loss_increase == 0


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
def test_every_other_size_costs_something(law: SurfaceLaw) -> None:
    for row in overtraining_curve(law=law, compute_budget_flops=1e21, size_factors=(4.0, 2.0, 0.9, 0.5)):
        assert row.loss_increase > 0
        assert row.compute_ratio is None or row.compute_ratio > 1


def test_the_critical_size_of_the_rounded_law() -> None:
    """De Vries, "Go smol or go home" (2023): about 30 % of the optimal size takes twice the compute, at any budget."""
    law = LAWS["sardana2024"]
    assert isinstance(law, SurfaceLaw)
    for budget in (1e20, 1e24):
        row = overtraining_curve(law=law, compute_budget_flops=budget, size_factors=(0.3,))[0]
        assert row.compute_ratio == pytest.approx(2, rel=0.05)


def test_too_small_a_model_never_gets_there() -> None:
    """a f^-alpha reaches 1 at f = a^(1/alpha), 0.147 for Besiroglu et al.: an eighth is below it, a sixth is not."""
    law = LAWS["besiroglu2024"]
    assert isinstance(law, SurfaceLaw)
    eighth, sixth = overtraining_curve(law=law, compute_budget_flops=1e21, size_factors=(1 / 8, 1 / 6))
    assert eighth.tokens_at_equal_loss is None
    assert sixth.compute_ratio is not None
    assert sixth.compute_ratio > 10
