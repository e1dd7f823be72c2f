"""Designs that cannot tell the constants apart, and designs that can."""

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.bootstrap import bootstrap_surface
from chinchilla_ds.budget.laws.fitting.runs import run_table
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Form, fit_surface
from tests.unit.budget.fitting.synthetic import (
    STEEP,
    TRUTH,
    chinchilla_points,
    isoflop_design,
    noisy,
    surface_of,
    sweep,
)

SIZES = np.geomspace(1e8, 1e10, 40)
LINES = {
    "same D/N": (SIZES, 20 * SIZES),
    "same N": (np.full(40, 1e9), np.geomspace(1e9, 1e12, 40)),
    "same D": (SIZES, np.full(40, 1e10)),
    "same budget N D": (SIZES, 1e20 / 6 / SIZES),
    "D goes as N^2": (SIZES, 2e10 * (SIZES / 1e9) ** 2),
}

# Cerebras-GPT (arXiv:2304.03208), model card: parameters, tokens, cross-entropy on the Pile's test set. D/N = 20.
CEREBRAS_PARAMS = (111e6, 256e6, 590e6, 1.3e9, 2.7e9, 6.7e9, 13e9)
CEREBRAS_TOKENS = (2.22e9, 5.12e9, 11.8e9, 26.3e9, 53e9, 133e9, 257e9)
CEREBRAS_LOSS = (2.566, 2.299, 2.184, 1.996, 1.834, 1.704, 1.575)


@pytest.mark.parametrize("shared", LINES)
@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("objective", list(FitLoss))
def test_runs_on_a_line(shared: str, noise: float, objective: FitLoss) -> None:
    fit = fit_surface(noisy(TRUTH, *LINES[shared], noise=noise, seed=1), objective=objective)
    assert not fit.identifiable
    assert shared in fit.warnings[0]


def test_a_line_has_another_surface_through_it() -> None:
    """Why D ~ N^2 says nothing: A and B change places, and every loss stays what it is."""
    num_params, num_tokens = LINES["D goes as N^2"]
    scale = 2e10 / 1e9**2
    swapped = surface_of(
        (
            TRUTH.irreducible_loss,
            TRUTH.tokens_coefficient / scale**TRUTH.beta,
            TRUTH.params_coefficient * scale ** (TRUTH.alpha / 2),
            2 * TRUTH.beta,
            TRUTH.alpha / 2,
            1.0,
        )
    )
    for n, d in zip(num_params, num_tokens, strict=True):
        assert swapped.loss(num_params=n, num_tokens=d) == pytest.approx(TRUTH.loss(num_params=n, num_tokens=d))


def test_cerebras_gpt() -> None:
    runs = run_table(num_params=CEREBRAS_PARAMS, num_tokens=CEREBRAS_TOKENS, loss=CEREBRAS_LOSS)
    fit = fit_surface(runs)
    assert not fit.identifiable
    assert fit.warnings[0].startswith("all runs have about the same D/N (19.9), which cannot tell alpha from beta")


@pytest.mark.parametrize("spread", [0.05, 0.1])
def test_a_ratio_that_hardly_varies(spread: float) -> None:
    ratio = 20 * np.exp(spread * np.random.default_rng(0).standard_normal(40))
    assert not fit_surface(noisy(TRUTH, SIZES, ratio * SIZES, noise=0.005)).identifiable


def test_two_ratios_are_enough() -> None:
    ratio = np.tile([20.0, 100.0], 20)
    assert fit_surface(noisy(TRUTH, SIZES, ratio * SIZES, noise=0.002)).identifiable


@pytest.mark.parametrize("objective", list(FitLoss))
@pytest.mark.parametrize("form", [Form.ADDITIVE, Form.SKALING])
def test_240_points(objective: FitLoss, form: Form) -> None:
    fit = fit_surface(chinchilla_points(), objective=objective, form=form)
    assert fit.identifiable
    assert fit.warnings == ()


@pytest.mark.parametrize("seed", range(20))
def test_30_isoflop_runs(seed: int) -> None:
    fit = fit_surface(sweep(budgets=5, sizes=6, noise=0.005, seed=seed))
    assert fit.identifiable
    assert fit.warnings == ()


@pytest.mark.parametrize("seed", range(5))
def test_noise_that_drowns_the_exponents(seed: int) -> None:
    """Twelve runs over a factor of two in N with 5 % noise: alpha and beta are anybody's guess."""
    runs = sweep(budgets=3, sizes=4, reach=1.5, noise=0.05, seed=seed)
    fit = fit_surface(runs)
    assert not fit.identifiable
    assert fit.warnings


def test_as_many_runs_as_constants() -> None:
    num_params, num_tokens = isoflop_design(budgets=3, sizes=3)
    fit = fit_surface(noisy(TRUTH, num_params[:5], num_tokens[:5], noise=0.0))
    assert not fit.identifiable


def test_no_irreducible_loss_is_said() -> None:
    fit = fit_surface(sweep(surface_of((1e-9, *STEEP[0][1:]))))
    assert [warning.partition(":")[0] for warning in fit.warnings] == ["the fit has E = 0"]


@pytest.mark.parametrize("seed", range(8))
def test_losses_that_are_no_law_at_all(seed: int) -> None:
    """Every number stays finite, in the draws as well; NumPy's warnings are errors here."""
    rng = np.random.default_rng(seed)
    runs = run_table(
        num_params=10 ** rng.uniform(7, 10, 25), num_tokens=10 ** rng.uniform(8, 12, 25), loss=rng.uniform(1, 5, 25)
    )
    fit = fit_surface(runs)
    assert not fit.identifiable
    bootstrap = bootstrap_surface(runs, fit=fit, num_draws=20, seed=seed)
    assert np.isfinite([*bootstrap.standard_errors.values()]).all()
