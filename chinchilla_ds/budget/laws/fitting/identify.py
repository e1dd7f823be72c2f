"""Whether a table of runs identifies the constants of the surface; if not, why not."""

import numpy as np

from chinchilla_ds.budget.laws.fitting.objective import ALPHA, BETA, LOG_E, LOG_K, Points, linearise
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.errors import DataError

SMALLEST_SPREAD = 0.25
"""Standard deviation of the runs across the line of (log N, log D) that they lie along: 25 % of N or D.

A sweep at one D/N whose ratio varies by +-10 % has 0.07, and its fitted alpha is off by half at 0.5 % noise; one that
varies by +-30 % has 0.21. The ratios 20 and 40 have 0.25, 20 and 80 0.49; the 240 points of Besiroglu et al. have 0.95,
five IsoFLOP budgets over +-4x in N 1.1.
"""
LARGEST_CONDITION = 1e5
"""Largest condition number of the residuals' Jacobian in (log A, log B, log E, alpha, beta[, log k]) with columns of
length 1.

The 240 points have 33 (with k free 1.5e3); a fixed D/N has 1e7 and more, all N equal has infinity.
"""
LARGEST_RELATIVE_ERROR = 0.5
"""Largest relative standard error of alpha and beta: above it the split of a budget is undetermined."""
SIGMA_PER_MEDIAN = 1.4826
"""Standard deviation over median absolute value of a normal distribution."""
STEEPEST_EXPONENT = 5.0
"""Largest alpha and beta: a steeper term vanishes within the smallest runs, and says nothing about the others."""
SMALLEST_IRREDUCIBLE_SHARE = 1e-4
"""Share of the mean loss below which E counts as 0, at the edge of what the form allows."""


def check_enough(runs: RunTable, /, *, num_parameters: int) -> None:
    """Refuse a table with fewer different (N, D) than parameters.

    Raises:
        DataError: names how many there are and how many would be enough.
    """
    distinct = len(set(zip(runs.num_params.tolist(), runs.num_tokens.tolist(), strict=True)))
    if distinct < num_parameters:
        raise DataError(
            f"{len(runs)} runs at {distinct} different (N, D) cannot determine the {num_parameters} parameters of the "
            f"loss surface; it takes at least {num_parameters + 1}, at several budgets and several D/N for each, and "
            "30 or more for a meaningful interval"
        )


def problems(points: Points, theta: Floats, /) -> list[str]:
    """Return why these runs do not identify the constants; empty if they do.

    Four tests, none of which depends on the units of N, D or loss: the runs must not lie on a line in (log N, log D);
    alpha and beta must lie below 5; the Jacobian's condition number must stay below 1e5; and alpha and beta must have a
    standard error below half their value, by the Gauss-Newton covariance with the residuals' median size as the noise,
    which one diverged run does not move.

    Args:
        points: the runs, n of them.
        theta: the optimum, [p], centred.
    """
    line = line_problem(points)
    if line is not None:
        return [line]
    steep = [
        f"{name} came out at {theta[column]:.3g}, above {STEEPEST_EXPONENT:g}: these losses do not fall as a power law"
        for name, column in (("alpha", ALPHA), ("beta", BETA))
        if theta[column] > STEEPEST_EXPONENT
    ]
    if steep:
        return steep
    at = linearise(points, theta[None])
    jacobian = at.jacobian[0]
    lengths = np.maximum(np.linalg.norm(jacobian, axis=1), 1e-300)
    singular = np.linalg.svd(jacobian / lengths[:, None], compute_uv=False)
    if singular[-1] * LARGEST_CONDITION < singular[0]:
        condition = singular[0] / max(singular[-1], 1e-300)
        return [
            f"the constants cannot be told apart: the condition number of the fit is {condition:.1e}, the limit "
            f"{LARGEST_CONDITION:.0e}; runs at more budgets and more D/N would bring it down"
        ]
    return _loose(theta, at.residual[0], jacobian)


def line_problem(points: Points, /) -> str | None:
    """Return what the runs have in common if they lie on a line in (log N, log D)."""
    spread, axes = np.linalg.eigh(np.cov(np.stack([points.log_params, points.log_tokens]), bias=True))
    if np.sqrt(max(spread[0], 0)) >= SMALLEST_SPREAD:
        return None
    along_params, along_tokens = axes[:, 1]
    ratio = np.exp(points.mean_log_tokens - points.mean_log_params)
    if abs(along_params) < 0.1 * abs(along_tokens):
        shared = f"all runs have about the same N ({np.exp(points.mean_log_params):.3g}), so that A and alpha are free"
    elif abs(along_tokens) < 0.1 * abs(along_params):
        shared = f"all runs have about the same D ({np.exp(points.mean_log_tokens):.3g}), so that B and beta are free"
    elif along_params * along_tokens < 0:
        shared = "all runs have about the same budget N D, one U-shaped curve for five constants"
    elif 0.9 < along_tokens / along_params < 1.1:
        shared = f"all runs have about the same D/N ({ratio:.3g}), which cannot tell alpha from beta"
    else:
        shared = f"D goes as N^{along_tokens / along_params:.2g} in all runs, which cannot tell alpha from beta"
    return f"{shared}; add runs at other D/N for several N, two or three IsoFLOP budgets for example"


def _loose(theta: Floats, residual: Floats, jacobian: Floats) -> list[str]:
    count, size = len(residual), len(theta)
    if count == size:
        return [f"{count} runs for {size} constants leave nothing to check the fit with; add runs"]
    # as many runs as constants may lie on the surface exactly, whatever the noise
    noise = SIGMA_PER_MEDIAN * float(np.median(np.sort(np.abs(residual))[size:]))
    errors = noise * np.sqrt(np.diag(np.linalg.inv(jacobian @ jacobian.T)))
    return [
        f"{name} is {theta[column]:.3g} with a standard error of {errors[column]:.2g}: more than half of it, so that "
        "the split of a budget between N and D is undetermined; add runs, or runs over a wider range"
        for name, column in (("alpha", ALPHA), ("beta", BETA))
        if errors[column] > LARGEST_RELATIVE_ERROR * theta[column]
    ]


def edge_warnings(theta: Floats, /) -> list[str]:
    """Return constants at the edge of the form that do not affect the split of a budget."""
    warnings = []
    if theta[LOG_E] < np.log(SMALLEST_IRREDUCIBLE_SHARE):
        warnings.append(
            "the fit has E = 0: these runs show no irreducible loss, and extrapolation below them is uncertain"
        )
    if len(theta) > LOG_K and abs(theta[LOG_K]) > np.log(5):
        warnings.append(f"the outer exponent k is {np.exp(theta[LOG_K]):.3g}, outside .2 to 5: the fit is degenerate")
    return warnings
