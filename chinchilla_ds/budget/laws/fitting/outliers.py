"""Dropping outliers: only on request, by one stated rule, with a reason for every dropped run."""

from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.hold_out import FEWEST_RUNS
from chinchilla_ds.budget.laws.fitting.objective import center, residuals
from chinchilla_ds.budget.laws.fitting.runs import Floats, Mask, RunTable
from chinchilla_ds.budget.laws.fitting.solve import solve
from chinchilla_ds.errors import DataError

LARGEST_DEVIATION = 5.0
"""Robust standard deviations; a normal residual exceeds it once in 1.7 million."""
SIGMA_PER_MAD = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""
LARGEST_SHARE = 0.1
"""Largest share of the runs that the rule may drop; if it would drop more, the form itself does not fit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierDecision:
    """Which runs are kept, and why the others are dropped."""

    kept: Mask
    """[run]."""
    reasons: tuple[str, ...]
    """One for each run that was dropped, in the order of the table."""


def drop_outliers(runs: RunTable, /, *, free_outer_exponent: bool = False) -> OutlierDecision:
    """Return which runs lie within five robust standard deviations of the surface; no fit calls this implicitly.

    The surface is fitted by least absolute deviations, which a few outliers hardly move. A run whose log
    residual is more than 5 x 1.4826 x the median absolute deviation from the median is dropped, and the rest fitted
    again, until none is. Both signs count: a loss can also be too low, for example on other text.

    Args:
        runs: at least 12 runs.
        free_outer_exponent: whether the surface's k is fitted; otherwise it is 1.

    Raises:
        DataError: too few runs to estimate their spread, or more than a tenth of them beyond the limit.

    Source: the rule of the median absolute deviation, Leys et al. 2013 (doi:10.1016/j.jesp.2013.03.013), with 5 in
        place of their 2.5 to 3. It is not that of Besiroglu et al. 2024 (arXiv:2404.10102), who drop the five runs of
        highest loss.
    """
    if len(runs) < FEWEST_RUNS:
        raise DataError(f"{len(runs)} runs are too few to detect an outlier; it takes {FEWEST_RUNS} or more")
    inside = np.ones(len(runs), dtype=np.bool_)
    while True:
        deviation = _deviations(runs, inside, free_outer_exponent=free_outer_exponent)
        beyond = inside & (np.abs(deviation) > LARGEST_DEVIATION)
        if not beyond.any():
            return OutlierDecision(
                kept=inside,
                reasons=tuple(_reason(runs, row, deviation[row]) for row in np.flatnonzero(~inside).tolist()),
            )
        inside = inside & ~beyond
        if np.sum(~inside) > LARGEST_SHARE * len(runs):
            raise DataError(
                f"{np.sum(~inside)} of {len(runs)} runs lie more than {LARGEST_DEVIATION:g} robust standard deviations "
                f"from the surface; above {LARGEST_SHARE:.0%} these are no longer outliers: look at the runs"
            )


def outlier_warning(runs: RunTable, residual: Floats, /, *, num_constants: int) -> str | None:
    """Return which runs lie far off a fit of all runs, and what to do; None if there is none.

    Args:
        runs: the fitted runs.
        residual: their log residuals, [run].
        num_constants: constants of the surface.
    """
    if len(runs) < FEWEST_RUNS:
        return None
    deviation = robust_deviations(residual, np.ones(len(runs), dtype=np.bool_), num_constants=num_constants)
    rows = np.flatnonzero(np.abs(deviation) > LARGEST_DEVIATION).tolist()
    if not rows:
        return None
    worst = max(rows, key=lambda row: abs(deviation[row]))
    lie = "lies" if len(rows) == 1 else "lie"
    return (
        f"{len(rows)} of {len(runs)} runs {lie} more than {LARGEST_DEVIATION:g} robust standard deviations off the "
        f"surface, the farthest {_reason(runs, worst, deviation[worst])}; `outliers=drop` fits without such runs"
    )


def _deviations(runs: RunTable, inside: Mask, *, free_outer_exponent: bool) -> Floats:
    """Return every run's log residual in robust standard deviations of the kept ones, [run]."""
    points = center(runs.select(inside))
    theta = solve(points, delta=0, free_outer_exponent=free_outer_exponent).theta[None]
    return robust_deviations(residuals(points.with_runs(runs), theta)[0], inside, num_constants=theta.shape[1])


def robust_deviations(residual: Floats, inside: Mask, /, *, num_constants: int) -> Floats:
    """Return observed - predicted in robust standard deviations of the kept runs, [run].

    A surface passes nearly through as many runs as it has constants, whatever the noise, so that many of the smallest
    deviations do not count. With all of them, two in five clean sweeps of 16 runs had an outlier; so, one in forty has.

    Args:
        residual: log residuals, [run].
        inside: the kept runs, more than there are constants.
        num_constants: constants of the surface.
    """
    middle = np.median(residual[inside])
    sizes = np.sort(np.abs(residual[inside] - middle))
    spread = SIGMA_PER_MAD * np.median(sizes[num_constants:])
    # residuals of an exact fit are rounding errors: no run is an outlier
    out: Floats = (middle - residual) / max(spread, 1e-9)
    return out


def _reason(runs: RunTable, row: int, deviation: float) -> str:
    side = "above" if deviation > 0 else "below"
    return (
        f"{runs.name(row)} (N {runs.num_params[row]:.3g}, D {runs.num_tokens[row]:.3g}, loss {runs.loss[row]:.4g}): "
        f"{abs(deviation):.1f} robust standard deviations {side} the surface, the limit is {LARGEST_DEVIATION:g}"
    )
