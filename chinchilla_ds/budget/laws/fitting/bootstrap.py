"""Uncertainty of a fitted surface: it is refitted to runs drawn with replacement, all draws at once."""

import math
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.draws import SurfaceDraws
from chinchilla_ds.budget.laws.fitting.intervals import (
    FEWEST_RUNS_FOR_PERCENTILES,
    bias_corrected_interval,
    percentile_interval,
)
from chinchilla_ds.budget.laws.fitting.newton import minimise
from chinchilla_ds.budget.laws.fitting.objective import ALPHA, BETA, LOG_A, LOG_B, LOG_E, LOG_K, Points, center
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.solve import VERTEX_DELTA, solve
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, SurfaceFit, theta_of
from chinchilla_ds.budget.laws.uncertainty import DEFAULT_LEVEL
from chinchilla_ds.errors import DataError

CHUNK_DRAWS = 128
"""Draws per batch: with 240 runs, a batch fits a core's cache."""


@dataclass(frozen=True, kw_only=True)
class FittedOptimum:
    """Intervals of a budget's optimum with probability `level`, (low, high) each."""

    compute_budget_flops: float
    level: float
    num_params: tuple[float, float]
    num_tokens: tuple[float, float]
    tokens_per_param: tuple[float, float]
    loss: tuple[float, float]
    """Nats per token: of `SurfaceBootstrap`, what each draw predicts at its own optimum; of a report, the loss of one
    run at the best N and D."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceBootstrap(SurfaceDraws):
    """The surfaces fitted to resampled runs, one row each.

    Intervals are percentiles of the draws for 200 runs or more, and bias-corrected percentiles below: see `intervals`.
    """

    num_points: int
    """Runs in the table."""
    num_not_converged: int
    """Draws whose gradient is not zero even after a second start; they are counted like the others."""

    def optimal_interval(self, *, compute_budget_flops: float, level: float = DEFAULT_LEVEL) -> FittedOptimum:
        """Return the intervals of the optimum N, D, D / N and loss on 6 N D = C.

        Source: Hoffmann et al. 2022 (arXiv:2203.15556), equation 4, at every draw.
        """
        draws = _optima(self.draws, compute_budget_flops=compute_budget_flops)
        estimates = _optima(self.estimate[None], compute_budget_flops=compute_budget_flops)
        intervals = {
            name: self.interval_of(values, float(estimates[name][0]), level=level) for name, values in draws.items()
        }
        return FittedOptimum(compute_budget_flops=compute_budget_flops, level=level, **intervals)

    def interval_of(self, values: Floats, estimate: float, /, *, level: float) -> tuple[float, float]:
        """Return the interval of a quantity.

        Args:
            values: the quantity in every draw, [draw].
            estimate: the same in the fit itself.
            level: probability of the interval.
        """
        if self.num_points >= FEWEST_RUNS_FOR_PERCENTILES:
            return percentile_interval(values, level=level)
        return bias_corrected_interval(values, estimate=estimate, level=level)


def bootstrap_surface(runs: RunTable, /, *, fit: SurfaceFit, num_draws: int, seed: int) -> SurfaceBootstrap:
    """Return the surfaces fitted to `num_draws` tables of as many runs, drawn from `runs` with replacement.

    Each draw starts at the full fit; a draw whose gradient does not reach zero starts again from variable projection.
    For LAD the draws are Huber fits at delta = 1e-6 log loss, far below any noise.

    The indices are those of `numpy.random.seed(seed)` and one `numpy.random.choice(n, n)` per draw, so that a published
    bootstrap can be repeated draw by draw.

    Args:
        runs: the runs that `fit` was fitted to.
        fit: the full fit: its objective, delta and form are those of the draws.
        num_draws: how many tables are drawn.
        seed: of numpy's legacy generator.

    Raises:
        DataError: fewer than two draws, or a seed that numpy's legacy generator does not take.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 9.5 (resampling of cases); the seed
        protocol is that of the code of Besiroglu et al. 2024 (arXiv:2404.10102).
    """
    if num_draws < 2:
        raise DataError(f"num_draws is {num_draws}; a bootstrap needs at least 2 draws, and 1000 for steady intervals")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; it must lie between 0 and {2**32 - 1}")
    points = center(runs)
    weights = resampling_weights(num_runs=len(runs), num_draws=num_draws, seed=seed)
    start = points.from_units(theta_of(fit.surface, form=fit.form)[None])
    delta = {FitLoss.HUBER: fit.delta, FitLoss.LAD: VERTEX_DELTA, FitLoss.SQUARED: math.inf}[fit.objective]
    draws, failed = [], 0
    for first in range(0, num_draws, CHUNK_DRAWS):
        theta, num_failed = _fit_draws(points, start=start, weights=weights[first : first + CHUNK_DRAWS], delta=delta)
        draws.append(points.to_units(theta))
        failed += num_failed
    return SurfaceBootstrap(
        draws=np.concatenate(draws),
        estimate=theta_of(fit.surface, form=fit.form),
        num_points=len(runs),
        num_not_converged=failed,
    )


def resampling_weights(*, num_runs: int, num_draws: int, seed: int) -> Floats:
    """Return how often each run is drawn, [draw, run].

    Args:
        num_runs: runs in the table.
        num_draws: bootstrap draws.
        seed: seed of numpy's legacy generator.
    """
    generator = np.random.RandomState(seed)
    weights = np.empty((num_draws, num_runs))
    for row in weights:
        row[:] = np.bincount(generator.choice(num_runs, num_runs), minlength=num_runs)
    return weights


def _fit_draws(points: Points, /, *, start: Floats, weights: Floats, delta: float) -> tuple[Floats, int]:
    """Return theta of every draw, [draw, p], and how many have not converged."""
    theta = np.repeat(start, len(weights), axis=0)
    for stage in _stages(delta):
        ends = minimise(points, start=theta, weights=weights, delta=stage)
        theta = ends.theta
    missed = np.flatnonzero(~ends.converged)
    failed = 0
    for draw in missed:
        again = solve(points, delta=delta, free_outer_exponent=theta.shape[1] > LOG_K, weights=weights[draw])
        failed += not again.converged
        theta[draw] = again.theta
    return theta, failed


def _stages(delta: float) -> list[float]:
    """Return the deltas by which a small one is approached."""
    stages = [delta]
    while stages[0] < 1e-4:
        stages.insert(0, 10 * stages[0])
    return stages


def _optima(theta: Floats, *, compute_budget_flops: float) -> dict[str, Floats]:
    """Return N, D, D / N and the loss at the optimum of every surface, [draw] each."""
    ratio = np.log(theta[:, ALPHA]) + theta[:, LOG_A] - np.log(theta[:, BETA]) - theta[:, LOG_B]
    log_nd = math.log(compute_budget_flops / 6)
    log_params = (ratio + theta[:, BETA] * log_nd) / (theta[:, ALPHA] + theta[:, BETA])
    log_tokens = log_nd - log_params
    inside = np.exp(theta[:, LOG_A] - theta[:, ALPHA] * log_params)
    inside += np.exp(theta[:, LOG_B] - theta[:, BETA] * log_tokens)
    if theta.shape[1] > LOG_K:
        inside **= np.exp(theta[:, LOG_K])
    return {
        "num_params": np.exp(log_params),
        "num_tokens": np.exp(log_tokens),
        "tokens_per_param": np.exp(log_tokens - log_params),
        "loss": np.exp(theta[:, LOG_E]) + inside,
    }
