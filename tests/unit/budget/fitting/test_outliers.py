import dataclasses

import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.outliers import drop_outliers, outlier_warning
from chinchilla_ds.budget.laws.fitting.surface import fit_surface
from chinchilla_ds.budget.laws.fitting.weak_priors import centred_runs, penalised_minimum, residuals
from chinchilla_ds.errors import DataError
from tests.unit.budget.fitting.synthetic import TRUTH, chinchilla_points, noisy, sweep


def test_planted_outliers_and_no_others_are_dropped() -> None:
    """At 0.4 % noise, 8 % off is 20 standard deviations; both directions count."""
    runs = sweep(noise=0.004, seed=9)
    loss = runs.loss.copy()
    loss[[4, 30]] *= [1.08, 0.92]
    decision = drop_outliers(dataclasses.replace(runs, loss=loss, labels=tuple(f"r{i}" for i in range(len(runs)))))
    assert np.flatnonzero(~decision.kept).tolist() == [4, 30]
    assert [reason.partition(" ")[0] for reason in decision.reasons] == ["r4", "r30"]
    assert "above the surface, the limit is 5" in decision.reasons[0]
    assert "below the surface, the limit is 5" in decision.reasons[1]


@pytest.mark.parametrize("seed", range(10))
def test_normal_noise_has_no_outliers(seed: int) -> None:
    assert drop_outliers(sweep(noise=0.004, seed=seed)).kept.all()


def test_few_runs_of_normal_noise_have_no_outliers() -> None:
    """16 runs for 6 constants: with the runs that the surface passes through in the scale, 8 of 20 sweeps had one."""
    false_alarms = 0
    for seed in range(20):
        draws = np.random.default_rng(seed)
        params, tokens = np.exp(draws.uniform(np.log([2e7, 4e8]), np.log([2e9, 5e10]), (16, 2))).T
        runs = noisy(TRUTH, params, tokens, noise=0.003, seed=seed)
        centred = centred_runs(runs, free_outer_exponent=True)
        residual = residuals(centred, penalised_minimum(centred).q[None])[0]
        false_alarms += outlier_warning(runs, residual, num_constants=6) is not None
    assert false_alarms <= 2


def test_one_diverged_run_of_few_is_dropped_alone() -> None:
    for seed in range(4):
        runs = sweep(sizes=4, budgets=4, noise=0.003, seed=seed)
        loss = runs.loss.copy()
        loss[5] = 9.0
        decision = drop_outliers(dataclasses.replace(runs, loss=loss), free_outer_exponent=True)
        assert np.flatnonzero(~decision.kept).tolist() == [5]


def test_exact_runs_have_no_outliers() -> None:
    assert drop_outliers(sweep()).kept.all()


def test_245_points() -> None:
    """Besiroglu et al. 2024 (arXiv:2404.10102) drop the 5 runs of highest loss; this rule drops those and 5 more.

    Its fit lies within one of their standard errors of theirs in all constants.
    """
    runs = chinchilla_points(outliers=True)
    decision = drop_outliers(runs)
    highest = set(np.argsort(runs.loss)[-5:].tolist())
    dropped = set(np.flatnonzero(~decision.kept).tolist())
    assert highest < dropped
    assert len(dropped) == len(decision.reasons) == 10
    surface = fit_surface(runs.select(decision.kept)).surface
    assert surface.params_coefficient == pytest.approx(482.01, abs=124.58)
    assert surface.tokens_coefficient == pytest.approx(2085.43, abs=1293.23)
    assert surface.irreducible_loss == pytest.approx(1.8172, abs=0.026)
    assert surface.alpha == pytest.approx(0.3478, abs=0.0154)
    assert surface.beta == pytest.approx(0.3658, abs=0.0206)


def test_too_few_runs_to_judge_by() -> None:
    with pytest.raises(DataError, match="11 runs are too few to detect an outlier; it takes 12"):
        drop_outliers(sweep(noise=0.004).select(range(11)))


def test_a_second_family_is_not_a_matter_of_outliers() -> None:
    """A fifth of the runs 10 % too high is another law, not five accidents."""
    runs = sweep(noise=0.002, seed=1)
    loss = runs.loss.copy()
    loss[::5] *= 1.1
    with pytest.raises(DataError, match="of 54 runs lie more than 5 robust standard deviations"):
        drop_outliers(dataclasses.replace(runs, loss=loss))
