"""The rate of every step from the rows of a log, compared with the schedule that the rows are of."""

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.rates import num_warmup_rows, step_rates
from tests.unit.budget.laws.curves.runs import PEAK, WARMUP, logged, schedule

TOTAL = 4000


@pytest.mark.parametrize(
    ("kind", "furthest"),
    [("constant", 1e-12), ("linear", 1e-12), ("jump", 1e-12), ("cosine", 1e-3), ("exponential", 2e-2)],
)
def test_a_schedule_is_rebuilt_from_its_rows(kind: str, furthest: float) -> None:
    """The linear decay starts between two rows, and the jump is at a row: both are exact."""
    rates, step = schedule(kind, total=TOTAL), np.r_[logged(TOTAL), TOTAL - 1]
    if kind in ("linear", "exponential"):
        step = np.delete(step, np.flatnonzero(step == 3200))
    rebuilt = step_rates(step, rates[step], warmup_steps=WARMUP)
    assert len(rebuilt) == TOTAL
    assert np.abs(rebuilt - rates).max() <= furthest * PEAK


def test_straight_lines_alone_would_smear_the_start_of_a_decay_and_a_jump() -> None:
    for kind in ("linear", "jump"):
        rates = schedule(kind, total=TOTAL)
        step = np.array([row for row in logged(TOTAL) if row != 3200])
        straight = np.interp(np.arange(WARMUP, step[-1] + 1), step, rates[step])
        assert np.abs(straight - rates[WARMUP : step[-1] + 1]).max() > 0.01 * PEAK


def test_a_jump_takes_place_at_the_row_that_has_the_new_rate() -> None:
    step, rate = np.array([0, 10, 20, 30, 40]), np.array([1.0, 1.0, 0.1, 0.1, 0.1])
    rates = step_rates(step, rate, warmup_steps=0)
    assert rates[19] == 1.0
    assert rates[20] == 0.1


def test_the_warm_up_rises_from_0_to_the_first_row() -> None:
    rates = step_rates(np.array([6, 8]), np.array([3.0, 3.0]), warmup_steps=4)
    assert rates.tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert step_rates(np.array([2, 4]), np.array([3.0, 1.0]), warmup_steps=0).tolist() == [3, 3, 3, 2, 1]


def test_rows_of_the_warm_up_are_counted() -> None:
    assert num_warmup_rows(np.array([0.0, 1.0, 2.0, 3.0, 3.0, 2.0])) == 3
    assert num_warmup_rows(np.array([0.0, 0.0, 1.0, 1.0])) == 2
    assert num_warmup_rows(np.array([3.0, 2.0, 2.5])) == 0
