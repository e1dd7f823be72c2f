"""One optimum: variable projection, damped Newton, and for least absolute deviations the exact vertex."""

from dataclasses import dataclass, replace

import numpy as np

from chinchilla_ds.budget.laws.fitting.newton import LARGEST_EXPONENT, Minimum, minimise
from chinchilla_ds.budget.laws.fitting.objective import (
    ALPHA,
    BETA,
    LOG_A,
    LOG_B,
    Linearised,
    Points,
    hessian,
    linearise,
)
from chinchilla_ds.budget.laws.fitting.runs import Floats, Mask
from chinchilla_ds.budget.laws.fitting.start import projected_starts

NUM_STARTS = 4
FIRST_ITERATIONS = 12
"""Newton steps for every start; only the best one continues."""
STAGE_ITERATIONS = 40
"""Newton steps for every intermediate delta."""
OUTER_EXPONENTS: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Starts for k."""
SPREAD_STARTS = 12
"""Further starts with k free, spread over k, E and the exponents, in every batch."""
SPREAD_ITERATIONS = 300
"""Newton steps for these: k and the exponents go up and down together along a bent valley."""
MAX_BATCHES = 4
SAME_MINIMUM = 1e-7
"""Relative difference of the objective below which two starts have reached the same minimum."""
TIMES_REACHED = 2
"""Starts that must have led to the least value; otherwise another batch begins."""
LARGEST_FIRST_DELTA = 1e-3
"""A smaller delta is approached from this one in steps of ten: the objective is then nearly smooth at first."""
VERTEX_DELTA = 1e-6
"""Least absolute deviations: residuals below this are zero at the optimum, unless the vertex says otherwise."""
VERTEX_ITERATIONS = 6
LARGEST_VERTEX_STEP = 0.1
"""Largest distance in any centred parameter; the Huber optimum at 1e-6 is far closer than this to the vertex."""
VERTEX_TOLERANCE = 1e-6
"""Tolerance of the subgradient's norm, per run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """The best optimum found."""

    theta: Floats
    """[p], centred."""
    gradient_norm: float
    converged: bool
    confirmed: bool = True
    """Whether a second start led there; always so with k = 1, where the grid of starts is complete."""


def solve(points: Points, /, *, delta: float, free_outer_exponent: bool, weights: Floats | None = None) -> Solution:
    """Return the minimum of the sum of Huber losses.

    Args:
        points: the runs, n of them.
        delta: where Huber's loss turns from square to absolute; infinity for least squares, 0 for the exact minimum of
            the absolute residuals, which takes no weights.
        free_outer_exponent: whether k is fitted; otherwise it is 1.
        weights: how often each run counts, [n]; None for once. With weights, k is searched for from few starts: it is
            a bootstrap draw of runs whose own optimum has been confirmed.
    """
    assert delta > 0 or weights is None
    is_draw = weights is not None
    weights = np.ones(len(points.log_loss)) if weights is None else weights
    first = max(delta, LARGEST_FIRST_DELTA)
    starts = projected_starts(points, weights=weights, delta=first, count=NUM_STARTS)
    theta = _best(points, starts, weights, first)
    confirmed = True
    if free_outer_exponent:
        theta = _best(points, _outer_starts(theta), weights, first)
        if not is_draw:
            theta, confirmed = _least(points, theta, weights, first)
    final = delta or VERTEX_DELTA
    while first > final:
        theta = minimise(
            points, start=theta[None], weights=weights[None], delta=first, max_iterations=STAGE_ITERATIONS
        ).theta[0]
        first = max(first / 10, final)
    end = minimise(points, start=theta[None], weights=weights[None], delta=final)
    return replace(_vertex(points, end) if delta == 0 else _solution(end), confirmed=confirmed)


def _solution(end: Minimum) -> Solution:
    return Solution(theta=end.theta[0], gradient_norm=float(end.gradient_norm[0]), converged=bool(end.converged[0]))


def _best(points: Points, starts: Floats, weights: Floats, delta: float) -> Floats:
    """Return the start with the lowest objective after a few Newton steps, after those steps."""
    repeated = np.repeat(weights[None], len(starts), axis=0)
    ends = minimise(points, start=starts, weights=repeated, delta=delta, max_iterations=FIRST_ITERATIONS)
    best: Floats = ends.theta[np.argmin(ends.value)]
    return best


def _least(points: Points, theta: Floats, weights: Floats, delta: float) -> tuple[Floats, bool]:
    """Return the least minimum with k free that `theta` and spread starts lead to, and whether two led there."""
    rng = np.random.default_rng(0)
    reached, values = [], []
    starts = np.vstack([theta, _spread_starts(rng)])
    for _ in range(MAX_BATCHES):
        repeated = np.repeat(weights[None], len(starts), axis=0)
        ends = minimise(points, start=starts, weights=repeated, delta=delta, max_iterations=SPREAD_ITERATIONS)
        reached.append(ends.theta)
        values.append(np.where(np.isfinite(ends.value), ends.value, np.inf))
        all_values = np.concatenate(values)
        times = np.sum(all_values <= all_values.min() * (1 + SAME_MINIMUM) + EXACT_FIT)
        if times >= TIMES_REACHED:
            break
        starts = _spread_starts(rng)
    best: Floats = np.concatenate(reached)[np.argmin(all_values)]
    return best, bool(times >= TIMES_REACHED)


EXACT_FIT = 1e-18
"""A sum of Huber losses that is 0 but for rounding."""


def _spread_starts(rng: np.random.Generator) -> Floats:
    """Return random starts with k free: E from hardly anything to nearly all of the loss, both terms equal at the mean.

    The slopes of the terms' powers, alpha k and beta k, are drawn, since the data determine them better than alpha.
    """
    low, high = np.log([[0.15], [0.05], [0.05]]), np.log([[4.0], [1.2], [1.2]])
    k, slope_of_params, slope_of_tokens = np.exp(rng.uniform(low, high, (3, SPREAD_STARTS)))
    share = rng.uniform(0.02, 0.97, SPREAD_STARTS)
    term = np.log(1 - share) / k - np.log(2)
    alpha, beta = (np.minimum(slope / k, 0.9 * LARGEST_EXPONENT) for slope in (slope_of_params, slope_of_tokens))
    return np.column_stack([term, term, np.log(share), alpha, beta, np.log(k)])


def _outer_starts(theta: Floats) -> Floats:
    """Return starts with k free that leave each term unchanged: (A^(1/k) / N^(alpha/k))^k."""
    exponents = np.array(OUTER_EXPONENTS)
    starts = np.column_stack([np.repeat(theta[None], len(exponents), axis=0), np.log(exponents)])
    for column in (LOG_A, LOG_B, ALPHA, BETA):
        starts[:, column] /= exponents
    inside = np.all(starts[:, [ALPHA, BETA]] < LARGEST_EXPONENT, axis=1)
    return starts[inside]


def _vertex(points: Points, end: Minimum) -> Solution:
    """Return the exact least-absolute optimum beside the Huber optimum at a tiny delta.

    There, some residuals r_S are zero, and multipliers lambda between -1 and 1 balance the signs of the others:
    sum_i sign(r_i) g_i + sum_S lambda_i g_i = 0. Newton's method solves both conditions together. The gradient norm is
    that of this sum with lambda cut to [-1, 1]: it is zero only where 0 is a subgradient. If Newton's method
    diverges, as it does for runs that do not identify the constants, the Huber optimum is returned.

    Source: Clarke 1983, Optimization and Nonsmooth Analysis, proposition 2.3.2 (0 in the subdifferential at a minimum).
    """
    theta = end.theta
    at = linearise(points, theta)
    zero = np.abs(at.residual[0]) <= VERTEX_DELTA
    signs = np.clip(at.residual[0] / VERTEX_DELTA, -1, 1)
    before = np.abs(at.residual).sum()
    for _ in range(VERTEX_ITERATIONS):
        step, multipliers = _vertex_step(points, at, zero, signs)
        if np.max(np.abs(step)) > LARGEST_VERTEX_STEP:
            break
        theta, signs[zero] = theta + step, multipliers
        at = linearise(points, theta)
    norm = float(np.linalg.norm(at.jacobian[0] @ np.clip(signs, -1, 1)))
    if norm < VERTEX_TOLERANCE and np.abs(at.residual).sum() <= before:
        return Solution(theta=theta[0], gradient_norm=norm, converged=True)
    return Solution(
        theta=end.theta[0], gradient_norm=float(end.gradient_norm[0]) / VERTEX_DELTA, converged=bool(end.converged[0])
    )


def _vertex_step(points: Points, at: Linearised, zero: Mask, signs: Floats) -> tuple[Floats, Floats]:
    """Return one Newton step of theta, [p], and the multipliers of the zero residuals."""
    size, count = at.jacobian.shape[1], int(zero.sum())
    system = np.zeros((size + count, size + count))
    system[:size, :size] = hessian(points, at, first=np.zeros_like(at.residual), second=signs[None])[0]
    system[:size, size:] = at.jacobian[0][:, zero]
    system[size:, :size] = at.jacobian[0][:, zero].T
    right = -np.concatenate([at.jacobian[0] @ np.where(zero, 0, signs), at.residual[0, zero]])
    solution = np.linalg.lstsq(system, right, rcond=1e-13)[0]
    return solution[:size], solution[size:]
