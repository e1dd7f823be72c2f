"""Approach 1: the least loss at every compute value, over training curves or over finished runs."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit, FrontierPoint, fit_levels, fit_points
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable

CURVE_FLOP_VALUES = 1500
"""Log-spaced compute values at which the best curve is searched for (Hoffmann et al. 2022, section 3.1)."""
MIN_CURVES = 3
"""Sizes that must reach a compute value for its best one to count."""


def fit_envelope(table: RunTable, *, num_draws: int = 1000, seed: int = 42) -> FrontierFit:
    """Fit approach 1: a power law through the models with the smallest loss at each compute value.

    Rows with one label and one N are a training curve, and its loss is interpolated in log C. Without curves, the best
    run of every compute level counts. A compute value whose best model is the smallest or the largest one there shows
    only on which side the optimum lies, and does not count. Intervals come from resampling whole curves, or every
    level's runs.

    Args:
        table: the runs.
        num_draws: bootstrap draws.
        seed: seeds the draws.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), section 3.1. Leaves out that the learning rate has not decayed
    yet within a curve, where the loss is therefore too high for its FLOPs.

    Raises:
        DataError: fewer than MIN_LEVELS compute values have a best model.
    """
    curves = _curves(table)
    if not len(curves.sizes):
        return fit_levels(table, approach=1, best=_best_run, num_draws=num_draws, seed=seed)
    count = len(curves.sizes)
    return fit_points(
        approach=1,
        points=_envelope(curves, np.arange(count)),
        refused=(),
        rows=curves.rows,
        draw=lambda generator: _envelope(curves, generator.integers(count, size=count)),
        num_draws=num_draws,
        seed=seed,
    )


def _best_run(table: RunTable, rows: NDArray[np.intp]) -> FrontierPoint | str:
    best = rows[np.argmin(table.loss[rows])]
    size, sizes = table.num_params[best], table.num_params[rows]
    if size == sizes.min():
        return "the smallest model is the best; train smaller ones"
    if size == sizes.max():
        return "the largest model is the best; train larger ones"
    return FrontierPoint(
        flops=float(table.flops[best]),
        num_params=float(size),
        num_tokens=float(table.num_tokens[best]),
        loss=float(table.loss[best]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curves:
    """Training curves on one grid of compute values; infinite where a curve does not reach."""

    sizes: Floats
    """N, [curve]."""
    flops: Floats
    """[value]."""
    loss: Floats
    """[curve, value]."""
    num_tokens: Floats
    """[curve, value]."""
    rows: NDArray[np.intp]
    """Indices of the curves' points in the table."""


def _curves(table: RunTable) -> _Curves:
    """Return the training curves of a table: at least two rows with one label and one N."""
    groups: dict[tuple[str, float], list[int]] = defaultdict(list)
    for index, label in enumerate(table.labels):
        if label:
            groups[label, float(table.num_params[index])].append(index)
    curves = [np.array(rows)[np.argsort(table.flops[rows])] for rows in groups.values() if len(rows) > 1]
    rows_used = np.concatenate(curves) if curves else np.arange(0)
    reached = table.flops[rows_used] if curves else np.ones(1)
    grid = np.linspace(np.log(reached.min()), np.log(reached.max()), CURVE_FLOP_VALUES)
    loss, tokens = (np.full((len(curves), len(grid)), np.inf) for _ in range(2))
    for index, rows in enumerate(curves):
        log_flops = np.log(table.flops[rows])
        inside = (grid >= log_flops[0]) & (grid <= log_flops[-1])
        loss[index, inside] = np.interp(grid[inside], log_flops, table.loss[rows])
        tokens[index, inside] = np.exp(np.interp(grid[inside], log_flops, np.log(table.num_tokens[rows])))
    sizes = np.array([table.num_params[rows[0]] for rows in curves])
    return _Curves(sizes=sizes, flops=np.exp(grid), loss=loss, num_tokens=tokens, rows=rows_used)


def _envelope(curves: _Curves, chosen: NDArray[np.intp]) -> list[FrontierPoint]:
    """Return the best model at every compute value that it shares with smaller and with larger ones."""
    loss = curves.loss[chosen]
    reached = np.isfinite(loss)
    sizes = curves.sizes[chosen][:, None]
    smallest = np.where(reached, sizes, np.inf).min(axis=0)
    largest = np.where(reached, sizes, -np.inf).max(axis=0)
    best = chosen[loss.argmin(axis=0)]
    counts = (reached.sum(axis=0) >= MIN_CURVES) & (curves.sizes[best] > smallest) & (curves.sizes[best] < largest)
    return [
        FrontierPoint(
            flops=float(curves.flops[value]),
            num_params=float(curves.sizes[best[value]]),
            num_tokens=float(curves.num_tokens[best[value], value]),
            loss=float(curves.loss[best[value], value]),
        )
        for value in np.flatnonzero(counts)
    ]
