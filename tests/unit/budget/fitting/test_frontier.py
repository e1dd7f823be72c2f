"""Approaches 1 and 2 against closed forms, and against what is published of approach 2's bias."""

import math

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.envelope import fit_envelope
from chinchilla_ds.budget.laws.fitting.frontier import find_levels
from chinchilla_ds.budget.laws.fitting.isoflop import fit_isoflop, parabola_bias
from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.fitting.surface import Surface
from chinchilla_ds.errors import DataError

BUDGETS = (1e17, 1e18, 1e19, 1e20, 1e21)
ASYMMETRIC = Surface(irreducible_loss=1.69, params_coefficient=406.4, tokens_coefficient=410.7, alpha=0.34, beta=0.28)
SYMMETRIC = Surface(irreducible_loss=1.7, params_coefficient=400.0, tokens_coefficient=900.0, alpha=0.3, beta=0.3)


def sweep(surface: Surface, *, reach: float = 8.0, sizes: int = 16, budgets: tuple[float, ...] = BUDGETS) -> RunTable:
    """Return noise-free runs at `sizes` log-spaced D from D*/reach to reach D* for each budget."""
    factors = np.geomspace(1 / reach, reach, sizes)
    optima = [(budget, surface.optimal(compute_budget_flops=budget).num_tokens) for budget in budgets]
    tokens = [best * factor for _, best in optima for factor in factors]
    params = [budget / 6 / (best * factor) for budget, best in optima for factor in factors]
    loss = [surface.loss(num_params=n, num_tokens=d) for n, d in zip(params, tokens, strict=True)]
    return run_table(num_params=params, num_tokens=tokens, loss=loss)


def test_levels_are_found_in_noisy_flops() -> None:
    flops = np.array([1.0, 1.02, 1.05, 3.0, 3.1, 3.2, 0.97]) * 1e19
    table = run_table(num_params=flops / 6e9, num_tokens=np.full(7, 1e9), loss=np.ones(7))
    levels = find_levels(table)
    assert [len(level.rows) for level in levels] == [4, 3]
    assert levels[0].flops == pytest.approx(1e19 * (1.0 * 1.02 * 1.05 * 0.97) ** 0.25)
    assert sorted(levels[0].rows.tolist()) == [0, 1, 2, 6]


def test_a_level_is_not_chained_beyond_its_ratio() -> None:
    """1.06 from neighbour to neighbour, but 1.06^9 from end to end."""
    flops = 1e19 * 1.06 ** np.arange(10)
    table = run_table(num_params=flops / 6e9, num_tokens=np.full(10, 1e9), loss=np.ones(10))
    assert all(np.ptp(np.log(table.flops[level.rows])) <= math.log(1.1) + 1e-9 for level in find_levels(table))


def test_approach_2_is_exact_on_a_parabola() -> None:
    """Loss = 3 + 0.1 (log N - log N*)^2 with N* = 0.1 C^0.5: the fit must return just that."""
    flops = np.repeat([1e18, 1e19, 1e20, 1e21], 7)
    best = 0.1 * np.sqrt(flops)
    params = best * np.tile(np.geomspace(0.3, 2.0, 7), 4)
    loss = 3 + 0.1 * np.log(params / best) ** 2
    fit = fit_isoflop(run_table(num_params=params, num_tokens=flops / 6 / params, loss=loss), num_draws=50)
    assert fit.params_law.coefficient == pytest.approx(0.1, rel=1e-9)
    assert fit.params_law.exponent == pytest.approx(0.5, rel=1e-10)
    assert fit.tokens_law.at(compute_budget_flops=6e20) == pytest.approx(1e20 / (0.1 * math.sqrt(6e20)), rel=1e-9)
    assert [point.loss for point in fit.points] == pytest.approx([3.0] * 4)
    low, high = fit.intervals_at(compute_budget_flops=1e22, level=0.8)["num_params"]
    assert (low, high) == pytest.approx((1e10, 1e10), rel=1e-6)  # no noise, no width


def test_approach_2_finds_the_exponent_of_a_symmetric_surface() -> None:
    """alpha = beta: the loss at equal FLOPs is even in log N, so that the parabola's minimum is the optimum."""
    fit = fit_isoflop(sweep(SYMMETRIC), num_draws=0)
    truth = SYMMETRIC.optimal(compute_budget_flops=1e24)
    assert fit.params_law.exponent == pytest.approx(0.5, abs=1e-9)
    assert fit.params_law.at(compute_budget_flops=1e24) == pytest.approx(truth.num_params, rel=1e-6)


def test_approach_2_misses_an_asymmetric_surface_as_published() -> None:
    """Czech et al. 2026 (arXiv:2603.22339): D* at 1e24 FLOPs comes out 2.9 % too small on grids from D*/8 to 8 D*."""
    runs = sweep(ASYMMETRIC)
    fit = fit_isoflop(runs, num_draws=0)
    bias = parabola_bias(runs, fit=fit, surface=ASYMMETRIC, compute_budget_flops=1e24)
    assert bias is not None
    assert bias.num_tokens == pytest.approx(-0.029, abs=0.0005)
    truth = ASYMMETRIC.optimal(compute_budget_flops=1e24)
    assert fit.tokens_law.at(compute_budget_flops=1e24) / truth.num_tokens - 1 == pytest.approx(bias.num_tokens)
    assert (1 + bias.num_params) * (1 + bias.num_tokens) == pytest.approx(1)


def test_narrow_grids_have_less_bias() -> None:
    runs = sweep(ASYMMETRIC, reach=2.0)
    bias = parabola_bias(runs, fit=fit_isoflop(runs, num_draws=0), surface=ASYMMETRIC, compute_budget_flops=1e24)
    assert bias is not None
    assert -0.004 < bias.num_tokens < 0


def test_levels_without_a_minimum_are_refused_by_name() -> None:
    good = sweep(SYMMETRIC, budgets=BUDGETS[:3], sizes=8)
    small, hollow = (np.geomspace(*ends, 6) for ends in ((1e6, 1e7), (1e8, 1e10)))
    small_loss = [SYMMETRIC.loss(num_params=n, num_tokens=1e20 / 6 / n) for n in small]
    table = run_table(
        num_params=[*good.num_params, *small, *hollow],
        num_tokens=[*good.num_tokens, *(1e20 / 6 / small), *(1e21 / 6 / hollow)],
        loss=[*good.loss, *small_loss, *(3 - 0.1 * np.log(hollow / 1e9) ** 2)],
    )
    fit = fit_isoflop(table, num_draws=0)
    assert len(fit.points) == 3
    assert fit.refused == (
        "1e+20 FLOPs (6 runs): the minimum lies above the sizes that were trained; train larger models",
        "1e+21 FLOPs (6 runs): the loss has no minimum in N (the parabola opens downwards); train smaller and larger "
        "models",
    )


@pytest.mark.parametrize(("fit", "approach"), [(fit_envelope, 1), (fit_isoflop, 2)])
def test_too_few_levels(fit, approach: int) -> None:
    with pytest.raises(DataError, match=f"approach {approach} needs at least 3 compute levels .* and finds 2"):
        fit(sweep(SYMMETRIC, budgets=BUDGETS[:2]))


def test_approach_1_takes_the_best_run_of_each_level() -> None:
    """Odd grids have D* itself among their sizes, and the run there has the least loss."""
    fit = fit_envelope(sweep(ASYMMETRIC, sizes=9), num_draws=20)
    for point in fit.points:
        best = ASYMMETRIC.optimal(compute_budget_flops=point.flops)
        assert point.num_params == pytest.approx(best.num_params)
        assert point.loss == pytest.approx(best.loss)
    assert fit.params_law.exponent == pytest.approx(0.28 / (0.34 + 0.28), rel=1e-9)
    assert fit.tokens_law.exponent == pytest.approx(0.34 / (0.34 + 0.28), rel=1e-9)


def test_approach_1_refuses_levels_whose_best_run_is_at_the_edge() -> None:
    runs = sweep(ASYMMETRIC, sizes=9)
    kept = np.ones(len(runs), dtype=bool)
    kept[-4:] = kept[:5] = False  # the rows go by rising D: what is left ends at the optimum, or begins next to it
    fit = fit_envelope(runs.select(kept), num_draws=0)
    assert len(fit.points) == 3
    assert [line.split(":")[1] for line in fit.refused] == [
        " the largest model is the best; train larger ones",
        " the smallest model is the best; train smaller ones",
    ]


def test_approach_1_reads_training_curves() -> None:
    """Losses along each curve lie on the surface, whose line the envelope follows up to the steps between sizes."""
    sizes = np.geomspace(1e7, 1e10, 31)
    flops = np.geomspace(1e17, 1e21, 200)
    params = np.repeat(sizes, len(flops))
    compute = np.tile(flops, len(sizes))
    loss = [ASYMMETRIC.loss(num_params=n, num_tokens=c / 6 / n) for n, c in zip(params, compute, strict=True)]
    labels = [f"{n:.3g}" for n in params]
    table = run_table(num_params=params, num_tokens=compute / 6 / params, loss=loss, labels=labels)
    fit = fit_envelope(table, num_draws=5)
    assert len(fit.points) > 1000
    assert fit.params_law.exponent == pytest.approx(0.28 / 0.62, abs=0.01)
    truth = ASYMMETRIC.optimal(compute_budget_flops=1e20)
    assert fit.params_law.at(compute_budget_flops=1e20) == pytest.approx(truth.num_params, rel=0.05)


def test_intervals_cover_the_truth_and_come_from_the_seed() -> None:
    runs = sweep(SYMMETRIC, reach=4.0)
    noise = np.random.default_rng(0).normal(0, 0.003, len(runs))
    noisy = run_table(num_params=runs.num_params, num_tokens=runs.num_tokens, loss=runs.loss * np.exp(noise))
    fits = [fit_isoflop(noisy, num_draws=200, seed=seed) for seed in (1, 1, 2)]
    intervals = [fit.exponent_intervals(level=0.8)["a"] for fit in fits]
    assert intervals[0] == intervals[1] != intervals[2]
    low, high = fits[0].exponent_intervals(level=0.99)["a"]
    assert low < 0.5 < high
    assert 0 < high - low < 0.1
