"""Mixtures as points: weights that sum to 1, each between a lower and an upper bound, and the best of them.

Shapes: m = points looked at together, k = sources.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.fitting.runs import Floats

_BISECTIONS = 60
_MAX_STEPS = 200
_HALVINGS = 12
_TOLERANCE = 1e-7
"""Weights that move by less than this have arrived."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """What each source's weight must lie between."""

    lower: Floats
    """[k], sums to at most 1."""
    upper: Floats
    """[k], sums to at least 1."""


def project(points: Floats, /, *, bounds: Bounds) -> Floats:
    """Return the mixture within the bounds nearest to each of `points`, [m, k].

    The nearest point is clip(w - t, lower, upper) with the t at which it sums to 1, found by bisection.

    Source: Wang and Lu 2015, Projection onto the capped simplex (arXiv:1503.01002).
    """
    low = np.min(points - bounds.upper, axis=1)
    high = np.max(points - bounds.lower, axis=1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_much = np.clip(points - middle[:, None], bounds.lower, bounds.upper).sum(axis=1) > 1
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    out: Floats = np.clip(points - ((low + high) / 2)[:, None], bounds.lower, bounds.upper)
    return out


def spread_points(*, bounds: Bounds, num_points: int, seed: int) -> Floats:
    """Return points all over the bounds, [num_points, k]: Dirichlet draws from corners to middle, projected."""
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
    """Return where projected gradient descent from each row of `start` ends, [m, k].

    Row i of what `value` ([m]) and `gradient` ([m, k]) return belongs to row i alone, so that every row may have a
    function of its own. A step is halved until the value falls by a share of what the gradient promises (Armijo), and
    doubled after a success; no row ever gets worse.

    Source: Bertsekas 1976, On the Goldstein-Levitin-Polyak gradient projection method, IEEE TAC 21, 174.
    """
    points, now = start, value(start)
    step = np.full(len(points), 0.1)
    for _ in range(_MAX_STEPS):
        slope = gradient(points)
        scale = np.maximum(np.abs(slope - slope.mean(axis=1, keepdims=True)).max(axis=1, keepdims=True), 1e-300)
        moved = np.zeros(len(points), dtype=bool)
        before = points
        for _ in range(_HALVINGS):
            trial = project(points - step[:, None] * slope / scale, bounds=bounds)
            found = value(trial)
            better = ~moved & (found < now + 1e-4 * ((trial - points) * slope).sum(axis=1))
            points = np.where(better[:, None], trial, points)
            now = np.where(better, found, now)
            moved |= better
            if moved.all():
                break
            step = np.where(moved, step, step / 2)
        step = np.where(moved, np.minimum(2 * step, 1.0), 0.1 * 0.5**_HALVINGS)
        if np.abs(points - before).max() < _TOLERANCE:
            break
    return points
