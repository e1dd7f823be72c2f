import numpy as np
import pytest

from chinchilla_ds.budget.laws.fitting.hold_out import hold_out
from chinchilla_ds.budget.laws.fitting.surface import Form, fit_surface
from tests.unit.budget.fitting.synthetic import STEEP, losses, surface_of, sweep

CURVED = surface_of((1.5, 4e6, 4e7, 0.8, 0.8, 0.4))
"""Far from additive: k = 0.4."""


@pytest.mark.parametrize("seed", range(8))
def test_auto_keeps_k_at_1_where_it_is(seed: int) -> None:
    fit = fit_surface(sweep(noise=0.003, seed=seed), form=Form.AUTO)
    assert fit.form is Form.ADDITIVE
    assert fit.surface.outer_exponent == 1
    assert fit.hold_out is not None


@pytest.mark.parametrize("seed", range(8))
def test_auto_finds_k_where_it_matters(seed: int) -> None:
    fit = fit_surface(sweep(CURVED, noise=0.001, seed=seed), form=Form.AUTO)
    assert fit.form is Form.SKALING
    assert fit.surface.outer_exponent == pytest.approx(0.4, abs=0.15)
    assert fit.hold_out is not None
    assert fit.hold_out.skaling_error < fit.hold_out.additive_error


def test_the_errors_are_those_of_runs_left_out() -> None:
    """Five folds by hand, run by run."""
    runs = sweep(surface_of(STEEP[5]), noise=0.003, seed=2)
    runs = runs.select(np.random.default_rng(0).permutation(len(runs)))
    found = hold_out(runs, delta=1e-3)
    assert found is not None
    order = np.argsort(runs.flops, kind="stable").tolist()
    errors: dict[Form, list[float]] = {Form.ADDITIVE: [], Form.SKALING: []}
    for fold in range(5):
        seen = runs.select([row for position, row in enumerate(order) if position % 5 != fold])
        held_out = runs.select(order[fold::5])
        for form, sizes in errors.items():
            surface = fit_surface(seen, form=form).surface
            predicted = losses(surface, held_out.num_params, held_out.num_tokens)
            sizes.extend(np.abs(np.log(predicted / held_out.loss)).tolist())
    assert found.num_held_out == len(errors[Form.SKALING]) == 54
    assert found.additive_error == pytest.approx(np.mean(errors[Form.ADDITIVE]), rel=1e-6)
    assert found.skaling_error == pytest.approx(np.mean(errors[Form.SKALING]), rel=1e-6)
    gain = np.subtract(errors[Form.ADDITIVE], errors[Form.SKALING])
    assert found.standard_error == pytest.approx(np.std(gain, ddof=1) / 54**0.5, rel=1e-5)


def test_too_few_runs_keep_k_at_1() -> None:
    fit = fit_surface(sweep(budgets=3, sizes=3, noise=0.001), form=Form.AUTO)
    assert fit.form is Form.ADDITIVE
    assert fit.hold_out is None
