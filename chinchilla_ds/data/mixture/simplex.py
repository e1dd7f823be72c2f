"""Mixtures as points: weights that sum to 1, each between a lower and an upper bound, and descent among them.

Shapes: m = points processed together, k = sources.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats

_MAX_STEPS = 200
_HALVINGS = 16
_ARMIJO = 1e-4
_TOLERANCE = 1e-6
"""Weights that move by less than this have converged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """Lower and upper bound of each source's weight."""

    lower: Floats
    """Lower bounds, [k]; their sum is at most 1."""
    upper: Floats
    """Upper bounds, [k]; their sum is at least 1."""


def project(points: Floats, /, *, bounds: Bounds) -> Floats:
    """Return the mixture within the bounds nearest to each of `points`, [m, k].

    The nearest point is clip(w - t, lower, upper) with the t for which it sums to 1. The sum is piecewise linear in t,
    with breakpoints where a weight reaches a bound, so that t follows from the two breakpoints around it.

    Source: Wang and Lu 2015, Projection onto the capped simplex (arXiv:1503.01002).
    """
    meetings = np.sort(np.concatenate([points - bounds.upper, points - bounds.lower], axis=1), axis=1)  # [m, 2 k]
    sums = np.clip(points[:, None] - meetings[:, :, None], bounds.lower, bounds.upper).sum(axis=2)
    after = np.clip((sums >= 1).sum(axis=1), 1, meetings.shape[1] - 1)
    row = np.arange(len(points))
    left, right = meetings[row, after - 1], meetings[row, after]
    high, low = sums[row, after - 1], sums[row, after]
    share = np.clip((high - 1) / np.maximum(high - low, 1e-300), 0, 1)
    out: Floats = np.clip(points - (left + share * (right - left))[:, None], bounds.lower, bounds.upper)
    return out


def spread_points(*, bounds: Bounds, num_points: int, seed: int) -> Floats:
    """Return points spread over the bounds, [num_points, k]: projected Dirichlet draws, from corners to the middle.

    Args:
        bounds: limits of each source's weight.
        num_points: number of points.
        seed: seeds the draws.
    """
    generator = np.random.default_rng(seed)
    num_sources = len(bounds.lower)
    concentrations = np.geomspace(0.1, 3.0, num_points)
    draws = np.stack([generator.dirichlet(np.full(num_sources, value)) for value in concentrations])
    corners = np.eye(num_sources)[: num_points // 2]
    draws[: len(corners)] = corners
    return project(draws, bounds=bounds)


def descend(
    start: Floats, /, *, value: Callable[[Floats], Floats], gradient: Callable[[Floats], Floats], bounds: Bounds
) -> Floats:
    """Return the results of projected gradient descent from each row of `start`, [m, k].

    Row i of the results of `value` ([m]) and `gradient` ([m, k]) depends only on row i, so that every row may have its
    own function. A step is halved until the value falls by a share of the decrease predicted by the gradient (Armijo),
    and doubled after a success; no row ever gets worse.

    Args:
        start: starting points, [m, k].
        value: the function, [m, k] -> [m].
        gradient: its gradient, [m, k] -> [m, k].
        bounds: limits of each source's weight.

    Source: Bertsekas 1976, On the Goldstein-Levitin-Polyak gradient projection method, IEEE TAC 21, 174.
    """
    points, now = start, value(start)
    step = np.full(len(points), 0.1)
    active = np.ones(len(points), dtype=bool)
    for _ in range(_MAX_STEPS):
        slope = gradient(points)
        centered = slope - slope.mean(axis=1, keepdims=True)
        direction = centered / np.maximum(np.abs(centered).max(axis=1, keepdims=True), 1e-300)
        before, waiting = points, active.copy()
        for _ in range(_HALVINGS):
            trial = project(points - step[:, None] * direction, bounds=bounds)
            reached = value(trial)
            better = waiting & (reached < now + _ARMIJO * ((trial - before) * slope).sum(axis=1))
            points, now = np.where(better[:, None], trial, points), np.where(better, reached, now)
            waiting &= ~better
            if not waiting.any():
                break
            step = np.where(waiting, step / 2, step)
        step = np.minimum(2 * step, 1.0)
        active &= np.abs(points - before).max(axis=1) > _TOLERANCE
        if not active.any():
            break
    return points
