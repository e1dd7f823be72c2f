"""The regressions against numerical derivatives, closed forms, and naive refits."""

import numpy as np
import pytest

from chinchilla_ds.data.mixture import regression
from chinchilla_ds.data.mixture.regression import FORMS, KernelRegression, RidgeRegression, TermForm
from tests.unit.data.mixture.synthetic import random_truth

MIXTURES = np.random.default_rng(0).dirichlet(np.ones(4), 30)
LOSSES = random_truth(num_sources=4, seed=1).noisy(MIXTURES, seed=2)
LOSSES = (LOSSES - LOSSES.mean()) / LOSSES.std()
ONES = np.ones(len(LOSSES))


@pytest.mark.parametrize("name", FORMS)
def test_slopes_are_the_derivatives_of_the_terms(name: str) -> None:
    fitted = FORMS[name](MIXTURES, LOSSES)
    points = np.random.default_rng(3).dirichlet(np.ones(4), 5)
    steps = 1e-6 * np.eye(4)
    numeric = np.stack([(fitted.terms(points + h) - fitted.terms(points - h)) / 2e-6 for h in steps], axis=2)
    np.testing.assert_allclose(fitted.slopes(points), numeric, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_counts_equal_repeated_runs(name: str) -> None:
    fitted = FORMS[name](MIXTURES, LOSSES)
    counts = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30)).astype(float)
    repeated = np.repeat(np.arange(30), counts.astype(int))
    found = fitted.terms(MIXTURES) @ fitted.solve(LOSSES, counts)
    if isinstance(fitted, RidgeRegression):
        rows, penalty = fitted.terms(MIXTURES[repeated]), fitted.penalty * np.eye(fitted.terms(MIXTURES).shape[1])
        penalty[0, 0] = 0
        wanted = fitted.terms(MIXTURES) @ np.linalg.solve(rows.T @ rows + penalty, rows.T @ LOSSES[repeated])
    else:
        assert isinstance(fitted, KernelRegression)
        covariance = fitted.terms(MIXTURES[repeated])[:, repeated] + fitted.noise * np.eye(30)
        wanted = fitted.terms(MIXTURES)[:, repeated] @ np.linalg.solve(covariance, LOSSES[repeated])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_penalty_is_that_of_least_error_when_runs_are_left_out_one_by_one() -> None:
    fitted = regression.fit_quadratic(MIXTURES, LOSSES)
    assert isinstance(fitted, RidgeRegression)
    terms = TermForm(products=True).terms(MIXTURES)

    def error(penalty: float) -> float:
        one = RidgeRegression(form=TermForm(products=True), penalty=penalty, mixtures=MIXTURES)
        misses = [LOSSES[i] - terms[i] @ one.solve(LOSSES, ONES - np.eye(30)[i]) for i in range(30)]
        return float(np.sum(np.square(misses)))

    assert fitted.penalty == min((penalty * 30 for penalty in regression.PENALTIES), key=error)


def test_each_form_finds_a_truth_of_its_own_form() -> None:
    points = np.random.default_rng(5).dirichlet(np.ones(4), 50)
    slope = np.array([1.0, -2.0, 0.5, 0.3])
    truths = {
        "linear": lambda w: w @ slope,
        "quadratic": lambda w: w @ slope + 3 * w[:, 0] * w[:, 1] - 2 * w[:, 2] * w[:, 3],
        "log terms": lambda w: w @ slope - 0.4 * np.log(w[:, 0] + 0.1) - 0.2 * np.log(w[:, 2] + 0.1),
    }
    for name, truth in truths.items():
        fitted = FORMS[name](MIXTURES, truth(MIXTURES))
        found = fitted.terms(points) @ fitted.solve(truth(MIXTURES), ONES)
        np.testing.assert_allclose(found, truth(points), atol=2e-3)


def test_gradient_of_the_process_likelihood() -> None:
    theta = np.r_[-np.ones(4), 0.0, -3.0, -3.0] + np.random.default_rng(6).normal(0, 0.2, 7)
    _, gradient = regression._negative_log_posterior(theta, MIXTURES, LOSSES)
    numeric = [
        (
            regression._negative_log_posterior(theta + step, MIXTURES, LOSSES)[0]
            - regression._negative_log_posterior(theta - step, MIXTURES, LOSSES)[0]
        )
        / 2e-5
        for step in 1e-5 * np.eye(7)
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_the_process_agrees_with_another_implementation() -> None:
    process = pytest.importorskip("sklearn.gaussian_process")
    kernels = process.kernels
    fitted = regression.fit_gaussian_process(MIXTURES, LOSSES)
    assert isinstance(fitted, KernelRegression)
    points = np.random.default_rng(7).dirichlet(np.ones(4), 20)
    logs = np.log(np.vstack([MIXTURES, points]) + fitted.offset)
    smooth = kernels.RBF(length_scale=1 / fitted.inverse_scales)
    joined = fitted.amplitude * smooth(logs[30:], logs[:30]) + 4 * points @ MIXTURES.T + 10
    np.testing.assert_allclose(fitted.terms(points), joined, rtol=1e-10)
