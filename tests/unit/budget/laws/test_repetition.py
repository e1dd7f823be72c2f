"""Muennighoff et al. 2023 (arXiv:2305.16264): values that its authors print, and brute force along 6 N D = C."""

import math

import pytest

from chinchilla_ds.budget.laws.lookup import SurfaceLaw, get_law
from chinchilla_ds.budget.laws.repetition import optimal_with_repetition, repeated_loss


@pytest.mark.parametrize(
    ("num_params", "num_tokens", "loss"),
    [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)],
)
def test_the_two_models_of_figure_1(num_params: float, num_tokens: float, loss: float) -> None:
    predicted = repeated_loss(num_params=num_params, num_tokens=num_tokens, unique_tokens=25e9)
    assert predicted == pytest.approx(loss, rel=0, abs=1e-12)


def test_the_authors_grid_search_finds_the_same_optimum() -> None:
    """Their README: for the compute of 8.67B on 178B and 25B distinct tokens, 227B tokens, 9.1 epochs, 6.8B."""
    best = optimal_with_repetition(compute_budget_flops=6 * 8.67e9 * 178e9, unique_tokens=25e9)
    assert best.num_tokens / 1e9 == pytest.approx(227, abs=0.5)
    assert best.epochs == pytest.approx(9.1, abs=0.05)
    assert best.num_params / 1e9 == pytest.approx(6.8, abs=0.05)


@pytest.mark.parametrize("budget", [1e17, 1e21, 1e25])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.03])
def test_no_other_split_is_better(budget: float, share: float) -> None:
    unique = share * get_law("muennighoff2023").optimal(compute_budget_flops=budget).num_tokens
    best = optimal_with_repetition(compute_budget_flops=budget, unique_tokens=unique)
    assert 6 * best.num_params * best.num_tokens == pytest.approx(budget)
    assert best.epochs == pytest.approx(best.num_tokens / unique)
    assert best.epochs > 1
    losses = [
        repeated_loss(
            num_params=best.num_params * math.exp(step / 500),
            num_tokens=best.num_tokens * math.exp(-step / 500),
            unique_tokens=unique,
        )
        for step in range(-2500, 2501)
    ]
    assert min(losses) >= best.loss * (1 - 1e-12)
    assert losses.index(min(losses)) == pytest.approx(2500, abs=1)


def test_enough_distinct_tokens_give_the_plain_optimum() -> None:
    law = get_law("muennighoff2023")
    plain = law.optimal(compute_budget_flops=1e21)
    for factor in (1.0, 10.0):
        best = optimal_with_repetition(compute_budget_flops=1e21, unique_tokens=factor * plain.num_tokens)
        assert (best.num_params, best.num_tokens) == pytest.approx((plain.num_params, plain.num_tokens))
        assert best.loss == pytest.approx(plain.loss)
        assert best.epochs == pytest.approx(1 / factor)


def test_one_epoch_is_the_plain_law() -> None:
    law = get_law("muennighoff2023")
    assert isinstance(law, SurfaceLaw)
    plain = law.loss(num_params=1e9, num_tokens=2e10)
    for unique in (2e10, 1e12):
        assert repeated_loss(num_params=1e9, num_tokens=2e10, unique_tokens=unique) == pytest.approx(plain, rel=1e-14)


def test_a_token_just_repeated_is_worth_a_fresh_one() -> None:
    """dD'/dD = exp(-R_D / R_D*), which is 1 at the first repetition and 1/e after R_D* of them."""
    unique, size = 1e10, 1e6
    epochs = 1 + 15.387756
    law = get_law("muennighoff2023")
    assert isinstance(law, SurfaceLaw)

    def worth(num_tokens: float) -> float:
        """D', from the loss that it gives."""
        at = repeated_loss(num_params=size, num_tokens=num_tokens, unique_tokens=unique)
        rest = at - law.loss(num_params=size, num_tokens=1e300)
        return (law.tokens_coefficient / rest) ** (1 / law.beta)

    def marginal(num_tokens: float) -> float:
        step = 1e-4 * num_tokens
        return (worth(num_tokens + step) - worth(num_tokens - step)) / (2 * step)

    assert marginal(1.001 * unique) == pytest.approx(1, rel=1e-3)
    assert marginal(epochs * unique) == pytest.approx(math.exp(-1), rel=1e-3)


def test_repetition_saturates() -> None:
    """However many epochs, U tokens are worth no more than U (1 + R_D*)."""
    law = get_law("muennighoff2023")
    assert isinstance(law, SurfaceLaw)
    endless = repeated_loss(num_params=1e8, num_tokens=1e18, unique_tokens=1e10)
    assert endless == pytest.approx(law.loss(num_params=1e8, num_tokens=1e10 * (1 + 15.387756)))


@pytest.mark.parametrize("unique", [1e6, 1e9])
def test_far_beyond_saturation_no_split_is_better_either(unique: float) -> None:
    """The loss is flat to the last digit around the optimum, so that only its value can be compared."""
    best = optimal_with_repetition(compute_budget_flops=1e26, unique_tokens=unique)
    assert 6 * best.num_params * best.num_tokens == pytest.approx(1e26)
    for factor in (1e-4, 1e-2, 0.5, 2, 1e2, 1e4):
        split = {"num_params": factor * best.num_params, "num_tokens": best.num_tokens / factor}
        assert repeated_loss(**split, unique_tokens=unique) >= best.loss * (1 - 1e-14)
