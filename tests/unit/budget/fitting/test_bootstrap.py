"""The bootstrap against the published standard errors, single fits of resampled tables, and known truths."""

import dataclasses
import functools
import math
from collections import Counter

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.bootstrap import SurfaceBootstrap, bootstrap_surface, resampling_weights
from chinchilla_ds.budget.laws.fitting.intervals import bias_corrected_interval, percentile_interval
from chinchilla_ds.budget.laws.fitting.runs import RunTable
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Form, Surface, fit_surface
from chinchilla_ds.errors import DataError
from tests.unit.budget.fitting.synthetic import TRUTH, chinchilla_points, isoflop_design, noisy, sweep

NAMES = {
    "A": "params_coefficient",
    "B": "tokens_coefficient",
    "E": "irreducible_loss",
    "alpha": "alpha",
    "beta": "beta",
    "k": "outer_exponent",
}


@functools.cache
def bootstrap_of_240_points() -> SurfaceBootstrap:
    runs = chinchilla_points()
    return bootstrap_surface(runs, fit=fit_surface(runs), num_draws=4000, seed=42)


def test_standard_errors_of_besiroglu() -> None:
    """4000 draws from seed 42, Besiroglu et al. 2024 (arXiv:2404.10102) and the notebook that goes with it."""
    errors = bootstrap_of_240_points().standard_errors
    published = {"A": 124.5, "B": 1293.0, "E": 0.02566, "alpha": 0.01540, "beta": 0.02059}
    assert errors == pytest.approx(published, rel=0.01)
    assert bootstrap_of_240_points().num_not_converged == 0


def test_95_percent_intervals_of_besiroglu() -> None:
    published = {
        "A": (286.1, 743.6),
        "B": (1042, 5810),
        "E": (1.769, 1.871),
        "alpha": (0.317, 0.373),
        "beta": (0.331, 0.415),
    }
    found = bootstrap_of_240_points().interval(level=0.95)
    for name, ends in published.items():
        assert found[name] == pytest.approx(ends, rel=2e-3), name


def test_interval_of_the_chinchilla_budget() -> None:
    interval = bootstrap_of_240_points().optimal_interval(compute_budget_flops=5.76e23, level=0.8)
    assert interval.num_params == pytest.approx((57.5e9, 98.6e9), rel=2e-3)
    assert interval.tokens_per_param == pytest.approx((9.9, 29.0), rel=5e-3)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_indices_are_those_of_numpy_s_global_generator() -> None:
    """The protocol of the published bootstrap: np.random.choice over the indices of the rows that are kept."""
    kept = np.delete(np.arange(25), [3, 7])
    np.random.seed(7)
    draws = [Counter(np.random.choice(kept, size=len(kept), replace=True).tolist()) for _ in range(5)]
    weights = resampling_weights(num_runs=len(kept), num_draws=5, seed=7)
    assert weights.tolist() == [[draw[index] for index in kept.tolist()] for draw in draws]


@pytest.mark.parametrize("objective", list(FitLoss))
@pytest.mark.parametrize("form", [Form.ADDITIVE, Form.SKALING])
def test_a_draw_is_the_fit_of_the_table_that_was_drawn(objective: FitLoss, form: Form) -> None:
    runs = sweep(noise=0.004, seed=6)
    fit = fit_surface(runs, objective=objective, form=form)
    bootstrap = bootstrap_surface(runs, fit=fit, num_draws=6, seed=11)
    generator = np.random.RandomState(11)
    for draw in range(6):
        table = runs.select(generator.choice(len(runs), len(runs)))
        surface = fit_surface(table, objective=objective, form=form).surface
        # least absolute deviations are exact in a fit, and Huber at 1e-6 in a draw
        tolerance = 2e-3 if objective is FitLoss.LAD else 1e-6
        for name, values in bootstrap.constants.items():
            assert values[draw] == pytest.approx(getattr(surface, NAMES[name]), rel=tolerance), name


def test_exact_runs_have_no_width() -> None:
    runs = sweep()
    bootstrap = bootstrap_surface(runs, fit=fit_surface(runs), num_draws=20, seed=0)
    assert bootstrap.interval()["alpha"] == pytest.approx((TRUTH.alpha, TRUTH.alpha), rel=1e-6)
    best = TRUTH.optimal(compute_budget_flops=1e22)
    interval = bootstrap.optimal_interval(compute_budget_flops=1e22)
    assert interval.num_params == pytest.approx((best.num_params, best.num_params), rel=1e-5)
    assert interval.num_tokens == pytest.approx((best.num_tokens, best.num_tokens), rel=1e-5)
    assert interval.loss == pytest.approx((best.loss, best.loss), rel=1e-8)


@pytest.mark.parametrize("form", [Form.ADDITIVE, Form.SKALING])
def test_the_optimum_s_interval_is_that_of_the_draws_optima(form: Form) -> None:
    runs = sweep(budgets=9, sizes=24, noise=0.004, seed=8)
    fit = fit_surface(runs, form=form)
    bootstrap = bootstrap_surface(runs, fit=fit, num_draws=40, seed=1)
    constants = bootstrap.constants
    optima = [
        Surface(**{NAMES[name]: float(values[draw]) for name, values in constants.items()}).optimal(
            compute_budget_flops=2e22
        )
        for draw in range(40)
    ]
    interval = bootstrap.optimal_interval(compute_budget_flops=2e22, level=0.9)
    for name in ("num_params", "num_tokens", "loss"):
        ends = np.quantile([getattr(optimum, name) for optimum in optima], [0.05, 0.95])
        assert getattr(interval, name) == pytest.approx(ends, rel=1e-9)
    ratio = np.quantile([optimum.num_tokens / optimum.num_params for optimum in optima], [0.05, 0.95])
    assert interval.tokens_per_param == pytest.approx(ratio, rel=1e-9)


def test_covariance() -> None:
    runs = sweep(noise=0.004, seed=6)
    bootstrap = bootstrap_surface(runs, fit=fit_surface(runs), num_draws=50, seed=1)
    constants = bootstrap.constants
    columns = [
        np.log(constants["A"]),
        np.log(constants["B"]),
        np.log(constants["E"]),
        constants["alpha"],
        constants["beta"],
    ]
    centred = [column - column.mean() for column in columns]
    assert bootstrap.covariance == pytest.approx(np.array([[np.mean(a * b) for b in centred] for a in centred]))


def test_bias_correction() -> None:
    """Efron 1981: no shift where the estimate is the median; in closed form for a normal elsewhere."""
    values = np.array([math.exp(value) for value in np.random.default_rng(0).standard_normal(200_001)])
    middle = float(np.median(values))
    assert bias_corrected_interval(values, estimate=middle, level=0.8) == pytest.approx(
        percentile_interval(values, level=0.8)
    )
    # the estimate half a deviation above the median of its draws: z0 = 0.5, and the interval moves up by 2 z0 = 1
    low, high = bias_corrected_interval(values, estimate=math.exp(0.5), level=0.8)
    assert (math.log(low), math.log(high)) == pytest.approx((1 - 1.28155, 1 + 1.28155), abs=0.03)


def test_unusable_settings() -> None:
    runs = sweep(noise=0.004)
    fit = fit_surface(runs)
    with pytest.raises(DataError, match="num_draws is 1"):
        bootstrap_surface(runs, fit=fit, num_draws=1, seed=0)
    with pytest.raises(DataError, match="seed is -1"):
        bootstrap_surface(runs, fit=fit, num_draws=10, seed=-1)


def coverage(tables: list[RunTable], *, num_draws: int, objective: FitLoss = FitLoss.HUBER) -> dict[str, float]:
    """Return the share of tables whose 80 % interval holds the truth, for each constant and for the optimum."""
    budget = 5.76e23
    optimum = TRUTH.optimal(compute_budget_flops=budget)
    truths = {name: getattr(TRUTH, field) for name, field in NAMES.items() if name != "k"}
    truths |= {"num_params": optimum.num_params, "loss": optimum.loss}
    hits = dict.fromkeys(truths, 0)
    for seed, runs in enumerate(tables):
        bootstrap = bootstrap_surface(runs, fit=fit_surface(runs, objective=objective), num_draws=num_draws, seed=seed)
        intervals = bootstrap.interval(level=0.8)
        intervals |= dataclasses.asdict(bootstrap.optimal_interval(compute_budget_flops=budget, level=0.8))
        for name, truth in truths.items():
            low, high = intervals[name]
            hits[name] += low <= truth <= high
    return {name: count / len(tables) for name, count in hits.items()}


def sweeps(*, budgets: int, sizes: int, count: int) -> list[RunTable]:
    design = isoflop_design(budgets=budgets, sizes=sizes)
    return [noisy(TRUTH, *design, noise=0.005, seed=1000 + seed) for seed in range(count)]


def test_coverage_of_the_80_percent_interval_quickly() -> None:
    """60 sweeps: a fair coin of 80 % lands outside 65 to 95 % less than once in 200 times."""
    for name, share in coverage(sweeps(budgets=6, sizes=9, count=60), num_draws=150).items():
        assert 0.65 <= share <= 0.95, name


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("budgets", "sizes"), [(5, 6), (6, 9), (9, 12), (10, 24)])
def test_coverage_of_the_80_percent_interval(budgets: int, sizes: int) -> None:
    """30, 54, 108 and 240 runs, 500 sweeps each, losses with 0.5 % log-normal noise."""
    for name, share in coverage(sweeps(budgets=budgets, sizes=sizes, count=500), num_draws=400).items():
        assert 0.75 <= share <= 0.85, name
