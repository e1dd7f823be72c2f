"""The fit finds the constants of synthetic runs; one law over sizes, anchors, and the band."""

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.band import fit_laws
from chinchilla_ds.budget.laws.curves.equations import FORMS, MOMENTUM, MULTI_POWER, CurveForm
from chinchilla_ds.budget.laws.curves.fit import fit, huber_sum, log_errors, named_constants
from chinchilla_ds.budget.laws.curves.law import REFERENCE_PARAMS, CurveRun, fit_law
from tests.unit.budget.laws.curves.runs import MOMENTUM_TRUTH, TRUTH, synthetic

KINDS = ("cosine", "constant", "jump")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_constants_of_runs_without_noise_are_found(form: CurveForm) -> None:
    truth = TRUTH if form is MULTI_POWER else MOMENTUM_TRUTH
    curves = [synthetic(kind, constants=truth, form=form) for kind in KINDS]
    theta = fit(form, curves)
    found = named_constants(form, theta)
    assert max(np.abs(log_errors(form, theta, curve)).max() for curve in curves) < 2e-4
    for name in ("L0", "A", "alpha"):
        assert found[name] == pytest.approx(truth[name], rel=0.03)
    unseen = synthetic("linear", constants=truth, form=form)
    assert np.abs(log_errors(form, theta, unseen)).max() < 1e-3


def test_an_outlier_moves_the_fit_little() -> None:
    curves = [synthetic(kind, noise=1e-3, seed=i) for i, kind in enumerate(KINDS)]
    clean = fit(MULTI_POWER, curves)
    curves[0].loss[30] *= 1.5
    unseen = synthetic("linear")
    gap = log_errors(MULTI_POWER, fit(MULTI_POWER, curves), unseen) - log_errors(MULTI_POWER, clean, unseen)
    assert np.abs(gap).max() < 1e-3


def test_hubers_sum_is_that_of_scipy() -> None:
    from scipy.special import huber

    errors = np.linspace(-0.01, 0.01, 41)
    assert huber_sum(errors) == pytest.approx(float(huber(1e-3, errors).sum()), rel=1e-12)


def _size_truth(num_params: float) -> dict[str, float]:
    far = num_params / REFERENCE_PARAMS
    changed = {"L0": 1.69 + 0.95 * far**-0.25, "A": 0.6 * far**0.1, "alpha": 0.46 * far**-0.09, "B": 500 * far**0.15}
    return TRUTH | changed


def _size_runs(sizes: tuple[float, ...], kinds: tuple[str, ...] = KINDS) -> list[CurveRun]:
    return [
        CurveRun(curve=synthetic(kind, constants=_size_truth(size)), num_params=size)
        for size in sizes
        for kind in kinds
    ]


def test_one_law_over_two_sizes_predicts_a_third() -> None:
    law = fit_law(MULTI_POWER, _size_runs((25e6, 1e8)))
    assert law.constants()["kappa"] == pytest.approx(0.25, rel=0.1)
    for run in _size_runs((4e8,), ("linear", "cosine")):
        assert np.abs(law.log_errors(run)).max() < 0.01


def test_an_anchor_sets_the_level_of_a_size_that_breaks_the_law() -> None:
    shifted = _size_truth(4e8) | {"L0": _size_truth(4e8)["L0"] + 0.1}
    runs = _size_runs((25e6, 1e8))
    target = CurveRun(curve=synthetic("linear", constants=shifted), num_params=4e8)
    early = synthetic("constant", constants=shifted).select(slice(0, 8))
    anchored = fit_law(MULTI_POWER, [*runs, CurveRun(curve=early, num_params=4e8, is_anchor=True)])
    assert np.abs(fit_law(MULTI_POWER, runs).log_errors(target)).mean() > 0.02
    assert np.abs(anchored.log_errors(target)).max() < 0.008
    assert anchored.values == pytest.approx(fit_law(MULTI_POWER, runs).values), "an anchor does not change the shape"


def test_the_gradient_of_a_law_over_sizes_is_right() -> None:
    from chinchilla_ds.budget.laws.curves.law import _at_size

    expand, x = _at_size(4e8, 1.69), np.array([-0.1, -1.4, -0.5, 0.1, -0.8, -0.09, 6.2, 0.15, 0.0, -0.7, -0.5])
    _, chain = expand(x)
    for i in range(len(x)):
        step = 1e-6 * np.eye(len(x))[i]
        assert chain[:, i] == pytest.approx((expand(x + step)[0] - expand(x - step)[0]) / 2e-6, abs=1e-8)


def test_the_band_widens_by_what_the_laws_disagree_and_by_distance_in_size() -> None:
    laws = fit_laws(_size_runs((25e6, 1e8)))
    near, far = _size_runs((1e8,), ("linear",))[0], _size_runs((8e8,), ("linear",))[0]
    assert (laws.half_width(near) >= laws.half_width(near, with_disagreement=False)).all()
    assert laws.disagreement(near).max() > 1e-3, "the momentum law is not the truth here"
    assert laws.half_width(far).min() > np.log(8) * 0.015
    assert laws.laws[1].form is MOMENTUM


def test_the_only_run_whose_rate_falls_is_predicted_from_its_own_beginning() -> None:
    """Without it nothing is known of what a fall gains, which says nothing about the law that knows it."""
    runs = [CurveRun(curve=synthetic(kind, noise=1e-3, seed=i)) for i, kind in enumerate(("cosine", "constant"))]
    laws = fit_laws(runs)
    without = fit_law(MULTI_POWER, runs[1:])
    assert np.quantile(np.abs(without.log_errors(runs[0])), 0.8) > 0.02
    assert laws.misfit < 0.006
