import math

import pytest

from chinchilla_ds.budget.scaling_laws import LAWS, SurfaceLaw, get_law
from chinchilla_ds.errors import ConfigError


def test_hoffmann_approach_3_at_the_chinchilla_budget() -> None:
    optimum = get_law("hoffmann2022").optimal(compute_budget_flops=5.76e23)
    assert optimum.num_params / 1e9 == pytest.approx(40.4, abs=0.05)


# Hoffmann et al. 2022, Table A3, approach 3: N and the FLOPs at which it is optimal. The table's line has the exponent
# 0.4586, the constants 0.4565, so that they drift apart by up to 6 %.
@pytest.mark.parametrize(("num_params", "flops"), [(4e8, 2.21e19), (1e9, 1.62e20), (1e10, 2.46e22), (2.8e11, 3.52e25)])
def test_hoffmann_table_a3(num_params: float, flops: float) -> None:
    law = get_law("hoffmann2022")
    assert law.optimal(compute_budget_flops=flops).num_params == pytest.approx(num_params, rel=0.06)


def test_hoffmann_exponents() -> None:
    """Approach 3 gives a = 0.46 and b = 0.54 (Table 2)."""
    assert get_law("hoffmann2022").params_exponent == pytest.approx(0.46, abs=0.005)


def test_besiroglu_tokens_per_parameter_is_about_twenty() -> None:
    optimum = get_law("besiroglu2024").optimal(compute_budget_flops=5.76e23)
    assert optimum.num_tokens / optimum.num_params == pytest.approx(20, rel=0.1)


SURFACES = [law for law in LAWS.values() if isinstance(law, SurfaceLaw)]


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
@pytest.mark.parametrize("budget", [1e13, 1e18, 5.76e23])
def test_optimum_is_the_least_loss_on_the_budget(law, budget: float) -> None:
    optimum = law.optimal(compute_budget_flops=budget)
    assert 6 * optimum.num_params * optimum.num_tokens == pytest.approx(budget)
    for factor in (0.9, 0.99, 1.01, 1.1):
        num_params = factor * optimum.num_params
        other = law.loss(num_params=num_params, num_tokens=budget / 6 / num_params)
        assert other > optimum.loss
    marginal_n = law.alpha * law.params_coefficient * optimum.num_params**-law.alpha
    marginal_d = law.beta * law.tokens_coefficient * optimum.num_tokens**-law.beta
    assert marginal_n == pytest.approx(marginal_d)


def test_budget_for_params_inverts_the_optimum() -> None:
    law = get_law("hoffmann2022")
    assert law.budget_for_params(num_params=law.optimal(compute_budget_flops=3e20).num_params) == pytest.approx(3e20)


def test_infinite_model_and_data_reach_the_irreducible_loss() -> None:
    assert get_law("hoffmann2022").loss(num_params=1e300, num_tokens=1e300) == pytest.approx(math.exp(0.5267228))


def test_extrapolation_counts_from_the_range() -> None:
    law = get_law("hoffmann2022")
    assert law.extrapolation(compute_budget_flops=1e20) == 1
    assert law.extrapolation(compute_budget_flops=3e23) == pytest.approx(100)
    assert law.extrapolation(compute_budget_flops=6e16) == pytest.approx(100)


def test_unknown_law_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'hofmann2022'.*did you mean 'hoffmann2022'\?"):
        get_law("hofmann2022")


def test_rounded_constants_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"40\.4B to 32\.2B"):
        get_law("hoffmann2022_rounded")
