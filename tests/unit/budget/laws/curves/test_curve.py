"""Grouped sums compared with the full sums over every step, and long logs that are averaged."""

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.curve import loss_curve, thinned
from chinchilla_ds.budget.laws.curves.equations import FORMS, MULTI_POWER, CurveForm, predict, predict_with_gradient
from tests.unit.budget.laws.curves.runs import (
    MOMENTUM_TRUTH,
    TRUTH,
    WARMUP,
    full_sum,
    logged,
    schedule,
    synthetic,
)

TOTAL = 4000


def _theta(form: CurveForm) -> np.ndarray:
    truth = TRUTH if form is MULTI_POWER else MOMENTUM_TRUTH
    return np.log([truth[name] for name in form.constants])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "exponential", "jump"])
def test_groups_of_drops_give_the_full_sum(kind: str, form: CurveForm) -> None:
    rates, step = schedule(kind, total=TOTAL), logged(TOTAL)
    curve = loss_curve(step=step, rate=rates[step], loss=np.ones(len(step)), warmup_steps=WARMUP)
    exact = full_sum(rates, step, TRUTH if form is MULTI_POWER else MOMENTUM_TRUTH)
    gap = np.abs(predict(form, _theta(form), curve) - exact)
    assert gap.mean() < 1e-4
    assert gap.max() < 1.5e-3
    assert curve.since.shape[1] < 500, "groups, not steps"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_gradient_is_that_of_the_losses(form: CurveForm) -> None:
    curve, theta, width = synthetic("cosine"), _theta(form), 1e-6
    _, gradient = predict_with_gradient(form, theta, curve)
    for i in range(len(theta)):
        ahead, behind = theta.copy(), theta.copy()
        ahead[i] += width
        behind[i] -= width
        numeric = (predict(form, ahead, curve) - predict(form, behind, curve)) / (2 * width)
        assert gradient[:, i] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_a_rate_of_zero_is_finite() -> None:
    step, rate = np.arange(100, 1100, 100), np.linspace(1e-3, 0, 10)
    curve = loss_curve(step=step, rate=rate, loss=np.ones(10), warmup_steps=100)
    for form in FORMS:
        assert np.isfinite(predict_with_gradient(form, _theta(form), curve)[1]).all()


def test_a_log_of_every_step_is_averaged_for_the_fit() -> None:
    curve = synthetic("cosine", every=1, noise=0.01)
    short = thinned(curve)
    assert len(curve) == TOTAL - WARMUP
    assert len(short) <= 600
    truth = predict(MULTI_POWER, _theta(MULTI_POWER), short)
    assert np.abs(np.log(short.loss / truth)).mean() < 0.6 * 0.01 * np.sqrt(2 / np.pi)
    assert thinned(short) is short
