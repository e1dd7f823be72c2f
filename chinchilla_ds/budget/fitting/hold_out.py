"""Whether a free outer exponent k pays: both forms fitted to the cheaper runs and asked about the dearer ones."""

from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.fitting.objective import center, residuals
from chinchilla_ds.budget.fitting.runs import RunTable
from chinchilla_ds.budget.fitting.solve import solve

HELD_OUT_SHARE = 0.25
"""Of the runs, the dearest: what a fit is for is to extrapolate upwards."""
MARGIN = 0.1
"""A free k must lower the held-out error by at least this share, or k stays 1."""
FEWEST_RUNS = 12
"""With fewer there is no quarter to spare."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """How well both forms, fitted to the cheaper runs, predict the dearer ones."""

    num_held_out: int
    additive_error: float
    """Mean absolute log residual on the held-out runs with k = 1."""
    skaling_error: float
    """The same with k fitted."""

    @property
    def prefers_outer_exponent(self) -> bool:
        """Whether a free k predicts the held-out runs better by the margin."""
        return self.skaling_error < (1 - MARGIN) * self.additive_error


def hold_out(runs: RunTable, /, *, delta: float) -> HoldOut | None:
    """Return both forms' errors on the quarter of the runs with the most FLOPs; None for too few runs.

    Args:
        runs: at least 12 runs, or there is nothing to hold out.
        delta: Huber's delta; infinity for least squares, 0 for least absolute deviations.
    """
    if len(runs) < FEWEST_RUNS:
        return None
    order = np.argsort(runs.flops, kind="stable")
    num_held_out = round(HELD_OUT_SHARE * len(runs))
    seen, held_out = runs.select(order[:-num_held_out]), runs.select(order[-num_held_out:])
    errors = [_error(seen, held_out, delta=delta, free_outer_exponent=free) for free in (False, True)]
    return HoldOut(num_held_out=num_held_out, additive_error=errors[0], skaling_error=errors[1])


def _error(seen: RunTable, held_out: RunTable, *, delta: float, free_outer_exponent: bool) -> float:
    points = center(seen)
    theta = solve(points, delta=delta, free_outer_exponent=free_outer_exponent).theta[None]
    return float(np.mean(np.abs(residuals(points.with_runs(held_out), theta))))
