"""Starting points: a grid over alpha and beta, with the best non-negative E, A and B at each node.

This is variable projection: for given alpha and beta the surface is linear in E, A and B, so that only two dimensions
are left to search.
"""

import itertools

import numpy as np

from chinchilla_ds.budget.laws.fitting.objective import Points
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers, Mask

EXPONENTS: tuple[float, ...] = tuple(float(x) for x in np.geomspace(0.03, 3.0, 24))
"""Grid of alpha and of beta; published laws lie between .08 and 1.2."""
SMALLEST_SHARE = 1e-3
"""Share of the mean loss from which a term starts that the projection sets to zero, since its logarithm is fitted."""


def projected_starts(points: Points, /, *, weights: Floats, delta: float, count: int) -> Floats:
    """Return the `count` best nodes of the grid without a better neighbour, as theta, [m, 5].

    E, A and B are the non-negative least squares of the relative residuals; nodes are then ranked by the objective.

    Args:
        points: the runs, n of them.
        weights: how often each run counts, [n].
        delta: Huber's delta; infinity for least squares.
        count: how many starts.

    Source: Golub and Pereyra 1973, variable projection, on the surface of Hoffmann et al. 2022 (arXiv:2203.15556).
    """
    exponents = np.array(EXPONENTS)
    scale = np.exp(-points.log_loss)
    params = np.exp(-exponents[:, None] * points.log_params) * scale
    tokens = np.exp(-exponents[:, None] * points.log_tokens) * scale
    coefficients = _non_negative(*_normal_equations(params, tokens, scale, weights))
    predicted = coefficients[..., 0, None] * params[:, None] + coefficients[..., 1, None] * tokens[None]
    residual = np.log(predicted + coefficients[..., 2, None] * scale)
    size = np.abs(residual)
    inner = np.minimum(size, delta)
    value = (inner * (size - 0.5 * inner)) @ weights
    complete = np.all(coefficients > SMALLEST_SHARE, axis=-1)
    first, second = _best_nodes(value, complete, count)
    floor = np.maximum(coefficients[first, second], SMALLEST_SHARE)
    return np.column_stack([np.log(floor), exponents[first], exponents[second]])


def _normal_equations(params: Floats, tokens: Floats, scale: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the matrix, [alpha, beta, 3, 3], and right side, [alpha, beta, 3], of A, B and E against loss / loss."""
    nodes = len(params)
    matrix = np.empty((nodes, nodes, 3, 3))
    matrix[..., 0, 0] = (params**2 @ weights)[:, None]
    matrix[..., 1, 1] = tokens**2 @ weights
    matrix[..., 2, 2] = scale**2 @ weights
    matrix[..., 0, 1] = matrix[..., 1, 0] = (params * weights) @ tokens.T
    matrix[..., 0, 2] = matrix[..., 2, 0] = (params @ (weights * scale))[:, None]
    matrix[..., 1, 2] = matrix[..., 2, 1] = tokens @ (weights * scale)
    right = np.empty((nodes, nodes, 3))
    right[..., 0] = (params @ weights)[:, None]
    right[..., 1] = tokens @ weights
    right[..., 2] = scale @ weights
    return matrix, right


def _non_negative(matrix: Floats, right: Floats) -> Floats:
    """Return the non-negative least squares solution, [..., 3], by trying every set of terms that are not zero."""
    best = np.zeros_like(right)
    gain = np.zeros(right.shape[:-1])
    for size in (1, 2, 3):
        for terms in itertools.combinations(range(3), size):
            inside = list(terms)
            part = matrix[..., inside, :][..., :, inside]
            unit = np.sqrt(np.einsum("...ii->...i", part))
            scaled = part / (unit[..., :, None] * unit[..., None, :]) + 1e-12 * np.eye(size)
            solution = np.linalg.solve(scaled, (right[..., inside] / unit)[..., None])[..., 0] / unit
            explained = np.sum(solution * right[..., inside], axis=-1)
            better = (solution >= 0).all(axis=-1) & (explained > gain)
            gain[better] = explained[better]
            best[better] = 0
            best[np.ix_(*map(range, better.shape), inside)] = np.where(better[..., None], solution, best[..., inside])
    return best


def _best_nodes(value: Floats, complete: Mask, count: int) -> tuple[Integers, Integers]:
    """Return the nodes with the smallest value: local minima first, nodes with all three terms before others."""
    padded = np.pad(value, 1, constant_values=np.inf)
    size = len(value)
    around = [padded[i : i + size, j : j + size] for i, j in itertools.product(range(3), repeat=2) if (i, j) != (1, 1)]
    lowest = value <= np.min(around, axis=0)
    order = np.lexsort((value.ravel(), ~lowest.ravel(), ~complete.ravel()))[:count]
    first, second = np.unravel_index(order, value.shape)
    return first, second
