"""The public curves of Luo et al. 2025 (arXiv:2503.12811): their constants, errors on schedules left out, the band."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.band import fit_laws
from chinchilla_ds.budget.laws.curves.curve import LossCurve
from chinchilla_ds.budget.laws.curves.equations import FORMS, MULTI_POWER
from chinchilla_ds.budget.laws.curves.fit import fit, huber_sum, log_errors
from chinchilla_ds.budget.laws.curves.law import CurveRun, fit_law
from tests.unit.budget.laws.curves.runs import AUTHORS, AUTHORS_ERRORS, TRAIN, public_curves

SIZES = {"25M": 25e6, "100M": 100e6}


def _mean_and_worst(errors: Sequence[np.ndarray]) -> tuple[float, float]:
    relative = [np.abs(np.expm1(error)) for error in errors]
    return float(np.mean([one.mean() for one in relative])), float(np.mean([one.max() for one in relative]))


def _split(size: str) -> tuple[list[LossCurve], list[LossCurve]]:
    curves = public_curves(size)
    return [curves[name] for name in TRAIN], [curve for name, curve in curves.items() if name not in TRAIN]


def _prefix(curve: LossCurve, share: float) -> LossCurve:
    return curve.select(slice(0, round(share * len(curve))))


@pytest.mark.parametrize("size", SIZES)
def test_the_authors_constants_give_their_errors(size: str) -> None:
    _, test = _split(size)
    found = _mean_and_worst([log_errors(MULTI_POWER, np.log(AUTHORS[size]), curve) for curve in test])
    assert found == pytest.approx(AUTHORS_ERRORS[size], rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_schedules_that_were_left_out_are_predicted(size: str) -> None:
    train, test = _split(size)
    started = time.process_time()
    theta = fit(MULTI_POWER, train)
    assert time.process_time() - started < 0.1
    mean, worst = _mean_and_worst([log_errors(MULTI_POWER, theta, curve) for curve in test])
    assert mean <= 0.0014
    assert worst <= 0.0050
    ours, theirs = (
        sum(huber_sum(log_errors(MULTI_POWER, values, curve)) for curve in train)
        for values in (theta, np.log(AUTHORS[size]))
    )
    assert ours < 0.6 * theirs


@pytest.mark.parametrize("size", SIZES)
def test_the_band_holds_what_it_says(size: str) -> None:
    train, test = _split(size)
    laws = fit_laws([CurveRun(curve=curve) for curve in train])
    shares = []
    for curve in test:
        run = CurveRun(curve=curve)
        shares.append(np.mean(np.abs(np.log(laws.predict(run) / curve.loss)) <= laws.half_width(run)))
    assert 0.70 <= np.mean(shares) <= 0.95
    assert laws.half_width(CurveRun(curve=test[0])).max() < 0.01, "the band is narrow all the same"


@pytest.mark.parametrize("size", SIZES)
def test_the_beginning_of_two_runs_gives_the_end_of_a_longer_one(size: str) -> None:
    curves = public_curves(size)
    beginnings = [_prefix(curves[name], 0.3) for name in ("cosine_24000", "constant_24000")]
    for form in FORMS:
        assert abs(np.expm1(log_errors(form, fit(form, beginnings), curves["cosine_72000"])[-1])) < 0.01


def test_one_law_for_both_sizes_with_the_level_from_a_tenth_of_a_run() -> None:
    """Both sizes were fitted: what an anchor does at a size that was not, these runs cannot show."""
    curves = {size: public_curves(name) for name, size in SIZES.items()}
    runs = [CurveRun(curve=curves[size][name], num_params=size) for size in curves for name in TRAIN]
    started = time.process_time()
    law = fit_law(MULTI_POWER, runs)
    assert time.process_time() - started < 5
    for size, named in curves.items():
        rest = [CurveRun(curve=curve, num_params=size) for name, curve in named.items() if name not in TRAIN]
        mean, worst = _mean_and_worst([law.log_errors(run) for run in rest])
        assert mean <= 0.0014
        assert worst <= 0.0050
        anchor = CurveRun(curve=_prefix(named["constant_24000"], 0.1), num_params=size, is_anchor=True)
        anchored = fit_law(MULTI_POWER, [*runs, anchor], start=law)
        mean, worst = _mean_and_worst([anchored.log_errors(run) for run in rest])
        assert mean <= 0.0025
        assert worst <= 0.008


@pytest.mark.parametrize(("fitted", "other"), [("25M", "100M"), ("100M", "25M")])
def test_the_shape_of_one_size_serves_another_four_times_as_large(fitted: str, other: str) -> None:
    """From one size there is no slope: the shape is that size's own, and the errors are 0.5 %, not 0.25 %."""
    train, _ = _split(fitted)
    curves = public_curves(other)
    anchor = CurveRun(curve=_prefix(curves["constant_24000"], 0.1), num_params=SIZES[other], is_anchor=True)
    law = fit_law(MULTI_POWER, [*(CurveRun(curve=curve, num_params=SIZES[fitted]) for curve in train), anchor])
    rest = [
        CurveRun(curve=curve, num_params=SIZES[other]) for name, curve in curves.items() if name != "constant_24000"
    ]
    mean, worst = _mean_and_worst([law.log_errors(run) for run in rest])
    assert mean <= 0.007
    assert worst <= 0.012
