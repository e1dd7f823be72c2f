"""Whether a free outer exponent k pays off: both forms predict runs that they were not fitted to."""

from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.objective import center, residuals
from chinchilla_ds.budget.laws.fitting.runs import Floats, Mask, RunTable
from chinchilla_ds.budget.laws.fitting.solve import solve

NUM_FOLDS = 5
MARGIN = 2.0
"""Standard errors of the difference by which a free k must lower the held-out error; otherwise k stays 1.

Of 120 synthetic sweeps with k = 1 (30 to 240 runs, 0.3 to 0.5 % noise) none came out with a free k; of 200 with k at
0.4, 0.75 and 1.6 all did. Judging only by the most expensive quarter of the runs, and a tenth of its error, freed k in
8 to 15 % of the former with 30 and 54 runs.
"""
FEWEST_RUNS = 12
"""With fewer, a fold has less than two runs."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """How well both forms predict runs that they were not fitted to."""

    num_held_out: int
    """Number of held-out runs; every run is held out once."""
    additive_error: float
    """Mean absolute log residual of the held-out runs with k = 1."""
    skaling_error: float
    """The same with k fitted."""
    standard_error: float
    """Standard error of the difference of both, over the runs."""

    @property
    def prefers_outer_exponent(self) -> bool:
        """Whether a free k predicts held-out runs better by the margin."""
        return self.additive_error - self.skaling_error > MARGIN * self.standard_error


def hold_out(runs: RunTable, /, *, delta: float) -> HoldOut | None:
    """Return both forms' errors in five-fold cross-validation; None for too few runs.

    The runs are distributed over the folds in the order of their FLOPs, so that every fold spans the whole range.

    Args:
        runs: at least 12 runs; otherwise there are too few to hold out.
        delta: Huber's delta; infinity for least squares, 0 for least absolute deviations.

    Source: Stone 1974, Cross-validatory choice, Journal of the Royal Statistical Society B 36, 111; the margin is ours.
    """
    if len(runs) < FEWEST_RUNS:
        return None
    fold = np.empty(len(runs), dtype=np.int64)
    fold[np.argsort(runs.flops, kind="stable")] = np.arange(len(runs)) % NUM_FOLDS
    errors = np.empty((2, len(runs)))
    for held_out in (fold == number for number in range(NUM_FOLDS)):
        for row, free in enumerate((False, True)):
            errors[row, held_out] = _errors(runs, held_out, delta=delta, free_outer_exponent=free)
    gain = errors[0] - errors[1]
    return HoldOut(
        num_held_out=len(runs),
        additive_error=float(errors[0].mean()),
        skaling_error=float(errors[1].mean()),
        standard_error=float(np.std(gain, ddof=1) / np.sqrt(len(runs))),
    )


def _errors(runs: RunTable, held_out: Mask, *, delta: float, free_outer_exponent: bool) -> Floats:
    """Return the absolute log residuals of the held-out runs under the fit of the others."""
    points = center(runs.select(~held_out))
    theta = solve(points, delta=delta, free_outer_exponent=free_outer_exponent).theta[None]
    out: Floats = np.abs(residuals(points.with_runs(runs.select(held_out)), theta)[0])
    return out
