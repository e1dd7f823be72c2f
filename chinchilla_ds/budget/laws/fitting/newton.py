"""Damped Newton on the sum of Huber losses, for many weightings of the same runs at once."""

from dataclasses import dataclass

import numpy as np

from chinchilla_ds.budget.laws.fitting.objective import Points, gram, hessian, linearise
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers, Mask

MAX_ITERATIONS = 100
LARGEST_EXPONENT = 8.0
"""Bounds of alpha and beta; beyond them A and B would overflow, and no sweep has shown one above 1.5."""
LARGEST_LOG_OUTER_EXPONENT = 3.0
LONGEST_STEP = 3.0
"""Largest step in any centred parameter."""
RELATIVE_TOLERANCE = 1e-12
"""Gradient norm over the sum of |weight x slope of the loss| below which the search stops."""
ABSOLUTE_TOLERANCE = 1e-15
"""Gradient norm that residuals rounded to 1e-16 can reach if the fit is exact."""
ROUNDING = 1e3
"""A search that cannot improve has converged if the gradient is within this factor of both tolerances."""
FLAT_METRIC = 1e-6
"""Share of the metric's trace added to its diagonal: damps directions that hardly affect the residuals, as E near 0."""
SMALLEST_CURVATURE = 1e-9
"""Curvatures below this share of the metric's are replaced by it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Minimum:
    """Results of the search, one row per problem."""

    theta: Floats
    """[m, p]."""
    value: Floats
    """The weighted sum of Huber losses, [m]."""
    gradient_norm: Floats
    """[m]."""
    converged: Mask
    """Whether the gradient is zero to rounding, [m]."""


@dataclass(kw_only=True, eq=False)
class _State:
    """One row per problem that is still running."""

    theta: Floats
    value: Floats
    gradient: Floats
    slope: Floats
    hessian: Floats
    metric: Floats

    def take(self, rows: Mask) -> "_State":
        return _State(**{name: column[rows] for name, column in vars(self).items()})

    def put(self, rows: Mask, other: "_State") -> None:
        for name, column in vars(self).items():
            column[rows] = vars(other)[name][rows]


def minimise(
    points: Points, /, *, start: Floats, weights: Floats, delta: float, max_iterations: int = MAX_ITERATIONS
) -> Minimum:
    """Return the minimum of sum_i weight_i Huber_delta(r_i) reached from each start.

    Each step solves (H + mu M) step = -gradient, where H is the exact Hessian with its negative curvature reversed
    and M is that of iteratively re-weighted least squares, which bounds the curvature of Huber's loss from above. mu
    shrinks on success, towards Newton's method, and grows on failure, towards short steps of the latter.

    Args:
        points: the runs, n of them.
        start: theta, [m, p].
        weights: how often each run counts, [m, n].
        delta: where Huber's loss turns from square to absolute; infinity for least squares.
        max_iterations: evaluations per problem.
    """
    count = len(start)
    result = Minimum(
        theta=start.copy(),
        value=np.full(count, np.inf),
        gradient_norm=np.full(count, np.inf),
        converged=np.zeros(count, dtype=np.bool_),
    )
    index = np.arange(count)
    damping = np.full(count, 0.1)
    state = _evaluate(points, start, weights, delta)
    for _ in range(max_iterations):
        norm = np.linalg.norm(state.gradient, axis=1)
        tolerance = RELATIVE_TOLERANCE * state.slope + ABSOLUTE_TOLERANCE
        _record(result, index, state, norm, norm <= ROUNDING * tolerance)
        going = (norm > tolerance) & (damping < 1e12)
        if not going.any():
            break
        if not going.all():
            index, weights, damping, state = index[going], weights[going], damping[going], state.take(going)
        step, predicted = _step(state, damping)
        trial = _evaluate(points, state.theta + step, weights, delta)
        accepted, good = _judge(state, trial, predicted)
        state.put(accepted, trial)
        damping = np.where(accepted, np.where(good, damping / 10, damping), 8 * np.maximum(damping, 1e-3))
        damping[damping < 1e-8] = 0
    return result


def _record(result: Minimum, index: Integers, state: _State, norm: Floats, done: Mask) -> None:
    result.theta[index], result.value[index] = state.theta, state.value
    result.gradient_norm[index], result.converged[index] = norm, done


def _evaluate(points: Points, theta: Floats, weights: Floats, delta: float) -> _State:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        at = linearise(points, theta)
        size = np.abs(at.residual)
        inner = np.minimum(size, delta)
        slope = weights * np.copysign(inner, at.residual)
        squared = weights * (size <= delta)
        bound = weights * (delta / np.maximum(size, delta)) if np.isfinite(delta) else weights
        return _State(
            theta=theta.copy(),
            value=np.sum(weights * inner * (size - 0.5 * inner), axis=1),
            gradient=np.einsum("mpn,mn->mp", at.jacobian, slope),
            slope=np.sum(np.abs(slope), axis=1),
            hessian=hessian(points, at, first=squared, second=slope),
            metric=gram(at.jacobian, bound),
        )


def _step(state: _State, damping: Floats) -> tuple[Floats, Floats]:
    """Return the steps, [m, p], and the decrease of the objective that the quadratic model predicts, [m]."""
    size = np.einsum("mpp->m", state.metric) + 1e-290
    metric = state.metric + FLAT_METRIC * size[:, None, None] * np.eye(state.theta.shape[1])
    inverse = np.linalg.inv(np.linalg.cholesky(metric))
    values, vectors = np.linalg.eigh(inverse @ state.hessian @ inverse.transpose(0, 2, 1))
    basis = inverse.transpose(0, 2, 1) @ vectors
    along = np.einsum("mpk,mp->mk", basis, state.gradient)
    values = np.maximum(np.abs(values), SMALLEST_CURVATURE) + damping[:, None]
    step = -np.einsum("mpk,mk->mp", basis, along / values)
    shrink = np.minimum(1, _room(state.theta, step))
    predicted = np.sum(along**2 / values, axis=1) * shrink * (1 - 0.5 * shrink)
    return step * shrink[:, None], predicted


def _room(theta: Floats, step: Floats) -> Floats:
    """Return the share of the step, [m], that stays clear of the bounds and is not too long."""
    lower = np.array([-np.inf, -np.inf, -np.inf, 0, 0, -LARGEST_LOG_OUTER_EXPONENT])[: theta.shape[1]]
    upper = np.array([np.inf, np.inf, np.inf, LARGEST_EXPONENT, LARGEST_EXPONENT, LARGEST_LOG_OUTER_EXPONENT])
    distance = np.where(step < 0, theta - lower, upper[: theta.shape[1]] - theta)
    with np.errstate(divide="ignore"):
        shares = np.minimum(0.8 * distance, LONGEST_STEP) / np.abs(step)
    out: Floats = shares.min(axis=1)
    return out


def _judge(state: _State, trial: _State, predicted: Floats) -> tuple[Mask, Mask]:
    """Return which trials are accepted, and which of them did about as well as predicted.

    Below the rounding of the objective itself the gradient decides.
    """
    usable = np.isfinite(trial.value) & np.isfinite(trial.hessian).all(axis=(1, 2))
    usable &= np.isfinite(trial.metric).all(axis=(1, 2))
    decrease = state.value - trial.value
    rounding = 1e-14 * state.value
    flatter = np.linalg.norm(trial.gradient, axis=1) < np.linalg.norm(state.gradient, axis=1)
    below = predicted < rounding
    accepted = usable & np.where(below, flatter & (decrease > -rounding), decrease > 1e-4 * predicted)
    return accepted, accepted & (below | (decrease > 0.5 * predicted))
