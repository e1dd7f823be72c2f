"""The frontier N*(C) = G C^a, D*(C) = H C^b as approaches 1 and 2 find it: without a loss surface.

`envelope` and `isoflop` find the best model of each compute level; this module has the levels and the lines through
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.budget.laws.fitting.intervals import percentile_interval
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.errors import DataError
from chinchilla_ds.units import format_flops

LEVEL_RATIO = 1.1
"""Runs belong to one compute level when their FLOPs lie within this factor of one another. Wider levels hold more runs,
whose differences in FLOPs tilt the parabola."""
MIN_SIZES = 4
"""Distinct N that a compute level needs: a parabola goes through any three."""
MIN_LEVELS = 3
"""Levels that a power law needs: a line goes through any two."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """Runs of (nearly) equal FLOPs."""

    rows: NDArray[np.intp]
    """Indices into the table, by rising N."""
    flops: float
    """Geometric mean of the runs' FLOPs."""
    num_sizes: int
    """Distinct N."""

    def __str__(self) -> str:
        return f"{format_flops(self.flops)} ({len(self.rows)} runs)"


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The best N and D found at one compute level."""

    flops: float
    num_params: float
    num_tokens: float
    loss: float
    """Nats per token: the parabola's minimum, or the best run's loss."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = coefficient x C^exponent."""

    coefficient: float
    exponent: float

    def at(self, *, compute_budget_flops: float) -> float:
        """Return y at a budget."""
        return float(self.coefficient * compute_budget_flops**self.exponent)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontierFit:
    """N* and D* as power laws of FLOPs, with the points that they are fitted to."""

    approach: int
    """1 or 2."""
    params_law: PowerLaw
    tokens_law: PowerLaw
    points: tuple[FrontierPoint, ...]
    refused: tuple[str, ...]
    """Compute levels that were not used, and why."""
    rows: NDArray[np.intp]
    """Indices of the runs that the points were found among."""
    draws: Floats
    """log G, a, log H, b of every bootstrap draw that gave a power law, [draw, 4]."""

    def exponent_intervals(self, *, level: float) -> dict[str, tuple[float, float]]:
        """Return the intervals of a and b; `level` is a probability such as 0.8."""
        return {
            "a": percentile_interval(self.draws[:, 1], level=level),
            "b": percentile_interval(self.draws[:, 3], level=level),
        }

    def intervals_at(self, *, compute_budget_flops: float, level: float) -> dict[str, tuple[float, float]]:
        """Return the intervals of N*, D* and D* / N* at a budget."""
        log_flops = np.log(compute_budget_flops)
        params = np.exp(self.draws[:, 0] + self.draws[:, 1] * log_flops)
        tokens = np.exp(self.draws[:, 2] + self.draws[:, 3] * log_flops)
        values = {"num_params": params, "num_tokens": tokens, "tokens_per_param": tokens / params}
        return {name: percentile_interval(value, level=level) for name, value in values.items()}


def find_levels(table: RunTable) -> tuple[Level, ...]:
    """Return the compute levels of a table, by rising FLOPs; every run belongs to one.

    The window of LEVEL_RATIO that holds the most runs is a level; the rest are grouped in the same way.
    """
    order = np.argsort(table.flops, kind="stable")
    levels = []
    while len(order):
        log_flops = np.log(table.flops[order])
        ends = np.searchsorted(log_flops, log_flops + np.log(LEVEL_RATIO) + 1e-9, side="right")
        start = int(np.argmax(ends - np.arange(len(ends))))
        window = np.s_[start : ends[start]]
        rows = order[window]
        sizes = table.num_params[rows]
        levels.append(
            Level(
                rows=rows[np.argsort(sizes, kind="stable")],
                flops=float(np.exp(log_flops[window].mean())),
                num_sizes=len(np.unique(sizes)),
            )
        )
        order = np.delete(order, window)
    return tuple(sorted(levels, key=lambda level: level.flops))


def fit_levels(
    table: RunTable,
    *,
    approach: int,
    best: Callable[[RunTable, NDArray[np.intp]], FrontierPoint | str],
    num_draws: int,
    seed: int,
) -> FrontierFit:
    """Return the power laws through the best point of every level with MIN_SIZES sizes.

    Args:
        table: The runs.
        approach: Its number, for messages.
        best: Returns the best point among these rows, or why there is none.
        num_draws: How often every level's runs are resampled, with replacement.
        seed: Seeds the draws.

    Raises:
        DataError: fewer than MIN_LEVELS levels have a best point.
    """
    large = [level for level in find_levels(table) if level.num_sizes >= MIN_SIZES]
    best_or_why = [(level, best(table, level.rows)) for level in large]
    refused = tuple(f"{level}: {point}" for level, point in best_or_why if isinstance(point, str))
    used = [level for level, point in best_or_why if not isinstance(point, str)]
    points = [point for _, point in best_or_why if not isinstance(point, str)]
    if len(points) < MIN_LEVELS:
        raise DataError(
            [
                f"approach {approach} needs at least {MIN_LEVELS} compute levels with a best model, and finds "
                f"{len(points)}; a level is {MIN_SIZES} or more model sizes trained with FLOPs within a factor of "
                f"{LEVEL_RATIO}, and these runs have {len(large)}",
                *(f"approach {approach}: level {line}" for line in refused),
            ]
        )

    def draw(generator: np.random.Generator) -> list[FrontierPoint]:
        drawn = (best(table, generator.choice(level.rows, size=len(level.rows))) for level in used)
        return [point for point in drawn if not isinstance(point, str)]

    return fit_points(
        approach=approach,
        points=points,
        refused=refused,
        rows=np.concatenate([level.rows for level in used]),
        draw=draw,
        num_draws=num_draws,
        seed=seed,
    )


def fit_points(
    *,
    approach: int,
    points: Sequence[FrontierPoint],
    refused: tuple[str, ...],
    rows: NDArray[np.intp],
    draw: Callable[[np.random.Generator], Sequence[FrontierPoint]],
    num_draws: int,
    seed: int,
) -> FrontierFit:
    """Return the least-squares lines of log N and log D in log C, with the bootstrap draws that give a line.

    Args:
        approach: its number, 1 or 2, for messages.
        points: the best model at each compute value.
        refused: levels that were not used, each with the reason.
        rows: indices of the runs that the points were found among, [row].
        draw: returns the points of one bootstrap draw.
        num_draws: bootstrap draws.
        seed: seeds the draws.
    """
    generator = np.random.default_rng(seed)
    lines = [line for _ in range(num_draws) if (line := _lines(draw(generator))) is not None]
    line = _lines(points)
    if line is None:
        raise DataError(f"approach {approach} needs best models at {MIN_LEVELS} compute levels, and finds fewer")
    return FrontierFit(
        approach=approach,
        params_law=PowerLaw(coefficient=float(np.exp(line[0])), exponent=float(line[1])),
        tokens_law=PowerLaw(coefficient=float(np.exp(line[2])), exponent=float(line[3])),
        points=tuple(points),
        refused=refused,
        rows=rows,
        draws=np.array(lines).reshape(-1, 4),
    )


def _lines(points: Sequence[FrontierPoint]) -> Floats | None:
    """Return log G, a, log H, b; None if there are too few points for a line."""
    log_flops = np.log([point.flops for point in points])
    if len(np.unique(log_flops)) < MIN_LEVELS:
        return None
    targets = np.log([[point.num_params, point.num_tokens] for point in points])
    centre = log_flops.mean()
    slopes = (log_flops - centre) @ targets / np.square(log_flops - centre).sum()
    heights = targets.mean(axis=0) - slopes * centre
    return np.array([heights[0], slopes[0], heights[1], slopes[1]])
