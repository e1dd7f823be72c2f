import math

import pytest

from chinchilla_ds.run_plan import Decay, Schedule
from chinchilla_ds.training.lr_schedule import learning_rate

PEAK, MINIMUM, TRAIN_ITERS, WARMUP = 1e-3, 1e-4, 100, 10
COSINE = Schedule(decay=Decay.COSINE, warmup_iters=WARMUP, decay_iters=90, min_learning_rate=MINIMUM)
WSD = Schedule(decay=Decay.WSD, warmup_iters=WARMUP, decay_iters=20, min_learning_rate=MINIMUM)


def rate(iteration: int, schedule: Schedule) -> float:
    return learning_rate(iteration, schedule=schedule, peak=PEAK, train_iters=TRAIN_ITERS)


@pytest.mark.parametrize("schedule", [COSINE, WSD])
def test_warmup_is_linear_starts_above_zero_and_ends_at_the_peak(schedule: Schedule) -> None:
    assert [rate(i, schedule) for i in range(WARMUP)] == pytest.approx([PEAK * (i + 1) / 10 for i in range(WARMUP)])
    assert rate(WARMUP - 1, schedule) == PEAK


def test_cosine_follows_its_closed_form_over_exactly_the_run() -> None:
    # 90 steps after the peak: a third of the way cos(pi/3) = 1/2, half way 0, at the last step -1
    assert rate(WARMUP - 1 + 30, COSINE) == pytest.approx(MINIMUM + 0.75 * (PEAK - MINIMUM), rel=1e-12)
    assert rate(WARMUP - 1 + 45, COSINE) == pytest.approx((PEAK + MINIMUM) / 2, rel=1e-12)
    assert rate(TRAIN_ITERS - 1, COSINE) == pytest.approx(MINIMUM, rel=1e-12)
    assert rate(TRAIN_ITERS - 2, COSINE) > MINIMUM


def test_cosine_sums_to_the_mean_of_peak_and_minimum() -> None:
    after_peak = [rate(i, COSINE) for i in range(WARMUP, TRAIN_ITERS)]
    # sum over k = 1..n of (1 + cos(pi k / n)) / 2 is (n - 1) / 2
    assert math.fsum(after_peak) == pytest.approx(90 * MINIMUM + (PEAK - MINIMUM) * 89 / 2, rel=1e-12)


def test_wsd_is_stable_then_linear_over_the_last_steps() -> None:
    assert {rate(i, WSD) for i in range(WARMUP - 1, TRAIN_ITERS - 20)} == {PEAK}
    decayed = [rate(TRAIN_ITERS - 20 + k, WSD) for k in range(20)]
    assert decayed == pytest.approx([PEAK - (PEAK - MINIMUM) * (k + 1) / 20 for k in range(20)], rel=1e-12)


@pytest.mark.parametrize("schedule", [COSINE, WSD])
def test_the_minimum_stays_after_the_run(schedule: Schedule) -> None:
    assert rate(TRAIN_ITERS + 500, schedule) == pytest.approx(MINIMUM, rel=1e-12)


def test_without_warmup_and_decay_the_peak_stays() -> None:
    flat = Schedule(decay=Decay.WSD, warmup_iters=0, decay_iters=0, min_learning_rate=MINIMUM)
    assert {rate(i, flat) for i in (0, 50, 99, 100)} == {PEAK}


def test_a_negative_iteration_is_an_error() -> None:
    with pytest.raises(ValueError, match="iteration is -1"):
        rate(-1, COSINE)


def test_phases_longer_than_the_run_are_an_error() -> None:
    long = Schedule(decay=Decay.WSD, warmup_iters=90, decay_iters=20, min_learning_rate=MINIMUM)
    with pytest.raises(
        ValueError, match=r"warmup_iters \(90\) \+ decay_iters \(20\) must fit into train_iters \(100\)"
    ):
        rate(0, long)


def test_a_cosine_that_ends_before_the_run_is_an_error() -> None:
    short = Schedule(decay=Decay.COSINE, warmup_iters=10, decay_iters=80, min_learning_rate=MINIMUM)
    with pytest.raises(ValueError, match="all 90 steps after its 10 warm-up steps, not over 80"):
        rate(0, short)
